"""One file or folder for each method; this folder is the registry."""

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from infusion.registry import Registry

if TYPE_CHECKING:
    from infusion.methods.method import Method

_SUPPORT = ("adapter", "adapter_file", "closed_form", "keys_and_values", "method")  # not methods


def _method_of(module: ModuleType) -> "type[Method]":
    from infusion.methods.method import Method

    own = [item for item in vars(module).values() if getattr(item, "__module__", "") == module.__name__]
    return next(item for item in own if isinstance(item, type) and issubclass(item, Method))


METHODS: Mapping[str, "type[Method]"] = Registry(__name__, _method_of, _SUPPORT, first="infusion")
