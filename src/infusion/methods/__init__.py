"""One file per method; this folder is the registry."""

from infusion.methods.custom_diffusion import CustomDiffusion
from infusion.methods.dreambooth import DreamBooth
from infusion.methods.infusion import Infusion
from infusion.methods.lora import LoRA, read_lora
from infusion.methods.method import Adapter, Method, together
from infusion.methods.perfusion import Perfusion
from infusion.methods.textual_inversion import TextualInversion, read_textual_inversion
from infusion.methods.xti import ExtendedTextualInversion

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Infusion,
        TextualInversion,
        ExtendedTextualInversion,
        Perfusion,
        CustomDiffusion,
        LoRA,
        DreamBooth,
    )
}

__all__ = [
    "METHODS",
    "Adapter",
    "CustomDiffusion",
    "DreamBooth",
    "ExtendedTextualInversion",
    "Infusion",
    "LoRA",
    "Method",
    "Perfusion",
    "TextualInversion",
    "read_lora",
    "read_textual_inversion",
    "together",
]
