"""A file or folder of another tool's -> what customization it is, and a base model in which it is in effect."""

from infusion.foreign.apply import ALL_OR_NOTHING, customized
from infusion.foreign.checkpoints import checkpoints, is_run
from infusion.foreign.identify import Found, inspect

__all__ = ["ALL_OR_NOTHING", "Found", "checkpoints", "customized", "inspect", "is_run"]
