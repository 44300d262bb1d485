"""One file per method; this folder is the registry."""

from infusion.methods.infusion import Infusion
from infusion.methods.method import Adapter, Method

METHODS: dict[str, type[Method]] = {method.name: method for method in (Infusion,)}

__all__ = ["METHODS", "Adapter", "Infusion", "Method"]
