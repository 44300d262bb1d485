"""A network -> the family it is of: one file for each kind of model; this folder is the registry."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from infusion.base.families.family import Family, TextLayer
from infusion.base.families.stable_diffusion import StableDiffusion
from infusion.errors import UserError

__all__ = ["Family", "StableDiffusion", "TextLayer", "families", "family_of"]


@cache
def families() -> tuple[type[Family], ...]:
    """Every family that a file of this folder defines, by the files' names."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return tuple(
        item
        for module in modules
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Family) and item.__module__ == module.__name__ and item.known_as
    )


def family_of(pipeline: Any) -> Family:
    """The family of a diffusers pipeline, by the kind of its network.

    Raises:
        UserError: it is of none; or parts that the family needs are missing.
    """
    parts = [getattr(pipeline, name, None) for name in ("unet", "transformer")]
    network: Any = unwrapped(next((part for part in parts if part is not None), None))
    kind = next((family for family in families() if family.fits(pipeline, network)), None)
    if kind is None:
        known = ", ".join(family.known_as for family in families())
        raise UserError(f"{type(pipeline).__name__} is of a kind that cannot be customized; these can: {known}.")
    family = kind.of(network)
    missing = [part for part in family.needed_parts if getattr(pipeline, part, None) is None]
    if missing:
        raise UserError(f"{type(pipeline).__name__} lacks {', '.join(missing)}, which is needed to customize it.")
    return family


def unwrapped(network: Any) -> Any:
    """The network inside what torch.compile has made of it."""
    return getattr(network, "_orig_mod", network)
