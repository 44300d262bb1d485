"""A file or folder of another tool's -> what customization it is, and a base model in which it is in effect."""

from infusion.foreign.checkpoints import checkpoints
from infusion.foreign.customized import customized
from infusion.foreign.found import Found, inspect

__all__ = ["Found", "checkpoints", "customized", "inspect"]
