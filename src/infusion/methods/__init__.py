"""One file or folder for each method; this folder is the registry."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infusion.methods.adapter import Adapter as Adapter
    from infusion.methods.method import Method as Method

_SUPPORT = ("adapter", "adapter_file", "closed_form", "keys_and_values", "method")  # not methods
_FIRST = "infusion"


class _Registry(Mapping[str, "type[Method]"]):
    """Methods by name, which is their file's with dashes; a file is imported when its method is asked for."""

    def __init__(self) -> None:
        found = sorted(module.name for module in iter_modules(__path__) if module.name not in _SUPPORT)
        self._files = {name.replace("_", "-"): name for name in sorted(found, key=lambda name: name != _FIRST)}

    def __getitem__(self, name: str) -> "type[Method]":
        from infusion.methods.method import Method

        module = import_module(f"infusion.methods.{self._files[name]}")
        own = [item for item in vars(module).values() if getattr(item, "__module__", "") == module.__name__]
        return next(item for item in own if isinstance(item, type) and issubclass(item, Method))

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


METHODS: Mapping[str, "type[Method]"] = _Registry()


def __getattr__(name: str) -> Any:
    """`Adapter` brings torch along, and is imported when it is used."""
    if name in ("Adapter", "Method"):
        return getattr(import_module(f"infusion.methods.{name.lower()}"), name)
    raise AttributeError(f"module 'infusion.methods' has no attribute '{name}'")
