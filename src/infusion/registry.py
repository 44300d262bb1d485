"""A folder of modules -> what each of them defines, by the module's name."""

from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Names are those of a package's modules, with dashes; a module is imported when its name is asked for.

    pick: what of a module is registered. support: modules that are not. first: what is listed before all others.
    """

    def __init__(
        self, package: str, pick: Callable[[ModuleType], T], support: Collection[str] = (), first: str = ""
    ) -> None:
        paths = import_module(package).__path__
        names = sorted(module.name for module in iter_modules(paths) if module.name not in support)
        self._modules = {name.replace("_", "-"): f"{package}.{name}" for name in sorted(names, key=first.__ne__)}
        self._pick = pick

    def __getitem__(self, name: str) -> T:
        return self._pick(import_module(self._modules[name]))

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)
