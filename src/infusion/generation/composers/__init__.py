"""How several concepts act in one image: one file for each composer; this folder is the registry."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules

from infusion.generation.composers.composer import Composer, Composition

__all__ = ["COMPOSERS", "Composer", "Composition"]


class _Registry(Mapping[str, Composer]):
    """Composers by name, which is their file's with dashes; each file defines `COMPOSER`."""

    def __init__(self) -> None:
        names = sorted(module.name for module in iter_modules(__path__) if module.name != "composer")
        self._files = {name.replace("_", "-"): name for name in names}

    def __getitem__(self, name: str) -> Composer:
        composer: Composer = import_module(f"infusion.generation.composers.{self._files[name]}").COMPOSER
        return composer

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


COMPOSERS: Mapping[str, Composer] = _Registry()
