"""A network -> the family it is of: one file for each kind of model."""

from typing import Any

from infusion.base.families.family import Family, TextLayer
from infusion.base.families.flux import Flux
from infusion.base.families.pixart import PixArt
from infusion.base.families.sana import Sana
from infusion.base.families.stable_diffusion import StableDiffusion
from infusion.base.families.stable_diffusion_3 import StableDiffusion3
from infusion.base.families.stable_diffusion_xl import StableDiffusionXL
from infusion.errors import UserError

__all__ = [
    "Family",
    "Flux",
    "PixArt",
    "Sana",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "TextLayer",
    "family_of",
]

_BY_NETWORK: dict[str, type[Family]] = {
    "PixArtTransformer2DModel": PixArt,
    "SanaTransformer2DModel": Sana,
    "SD3Transformer2DModel": StableDiffusion3,
    "FluxTransformer2DModel": Flux,
}
_KNOWN = "Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, PixArt-alpha and -sigma, Sana and FLUX.1"


def family_of(pipeline: Any) -> Family:
    """The family of a diffusers pipeline, by the kind of its network.

    Raises:
        UserError: it is of none; or parts that the family needs are missing.
    """
    parts = [getattr(pipeline, name, None) for name in ("unet", "transformer")]
    network: Any = unwrapped(next((part for part in parts if part is not None), None))
    kind = type(network).__name__
    if kind == "UNet2DConditionModel":
        two = any(getattr(pipeline, part, None) is not None for part in ("text_encoder_2", "tokenizer_2"))
        family: Family = StableDiffusionXL() if two else StableDiffusion(network.config.cross_attention_dim)
    elif kind in _BY_NETWORK:
        family = _BY_NETWORK[kind]()
    else:
        raise UserError(f"{type(pipeline).__name__} is of a kind that cannot be customized; these can: {_KNOWN}.")
    missing = [part for part in family.needed_parts if getattr(pipeline, part, None) is None]
    if missing:
        raise UserError(f"{type(pipeline).__name__} lacks {', '.join(missing)}, which is needed to customize it.")
    return family


def unwrapped(network: Any) -> Any:
    """The network inside what torch.compile has made of it."""
    return getattr(network, "_orig_mod", network)
