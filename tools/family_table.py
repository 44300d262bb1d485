"""The real configurations of models -> docs/families.md: what an adapter of each has to learn, counted.

    python tools/family_table.py            # writes the table in docs/families.md
    python tools/family_table.py --check    # fails where the file says something else

Networks are built on the `meta` device, so that nothing is downloaded and no memory is taken.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from infusion.base.families import Family, StableDiffusion
from infusion.base.families.flux import Flux
from infusion.base.families.pixart import PixArt
from infusion.base.families.sana import Sana
from infusion.base.families.stable_diffusion_3 import StableDiffusion3
from infusion.base.families.stable_diffusion_xl import StableDiffusionXL

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
_SD2 = {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD3_MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
_SD35_MEDIUM = _SD3_MEDIUM | {
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
    "pos_embed_max_size": 384,
}
_SD35_LARGE = _SD3_MEDIUM | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
_SANA_600M = {
    "num_layers": 28,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
# Values that differ from the classes' defaults, as the models' published config.json files have them.
MODELS: list[tuple[str, Family, type, dict[str, Any]]] = [
    (
        "Stable Diffusion 1.5",
        StableDiffusion(768),
        UNet2DConditionModel,
        {"sample_size": 64, "cross_attention_dim": 768},
    ),
    ("Stable Diffusion 2.1", StableDiffusion(1024), UNet2DConditionModel, {"sample_size": 96, **_SD2}),
    ("Stable Diffusion XL", StableDiffusionXL(), UNet2DConditionModel, _SDXL),
    ("PixArt-alpha, -sigma", PixArt(), PixArtTransformer2DModel, {"caption_channels": 4096}),
    ("Sana 0.6B", Sana(), SanaTransformer2DModel, _SANA_600M),
    ("Sana 1.6B", Sana(), SanaTransformer2DModel, {}),
    ("Stable Diffusion 3 medium", StableDiffusion3(), SD3Transformer2DModel, _SD3_MEDIUM),
    ("Stable Diffusion 3.5 medium", StableDiffusion3(), SD3Transformer2DModel, _SD35_MEDIUM),
    ("Stable Diffusion 3.5 large", StableDiffusion3(), SD3Transformer2DModel, _SD35_LARGE),
    ("FLUX.1", Flux(), FluxTransformer2DModel, {"guidance_embeds": True}),
]
MARK = "<!-- what follows is written by tools/family_table.py -->"
HEAD = """| model | parameters of the network | layers that read text | learnt numbers | KiB |
|---|---|---|---|---|
"""


def row(name: str, family: Family, network: type, config: dict[str, Any]) -> str:
    with torch.device("meta"):
        model = network(**config)
    layers = family.text_layers(model)
    total = sum(layer.width for layer in layers.values())
    weights = sum(parameter.numel() for parameter in model.parameters())
    return f"| {name} | {weights / 1e9:.2f} billion | {len(layers)} | {total:,} | {4 * total / 1024:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file differs")
    prose = PAGE.read_text().partition(MARK)[0]
    text = f"{prose}{MARK}\n\n{HEAD}" + "\n".join(row(*model) for model in MODELS) + "\n"
    if parser.parse_args().check:
        sys.exit(0 if PAGE.read_text() == text else f"{PAGE} is not what this script writes; run it.")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
