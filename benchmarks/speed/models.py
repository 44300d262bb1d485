"""The name of a size -> a folder in diffusers' layout: models of real shapes with random weights.

Speed does not depend on what weights say. `toybox` is the embedded model itself.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from family_table import MODELS

from infusion.toybox import FOUNDATION_DIR, TOYBOX

_VOCABULARY = 49_408  # CLIP's: Textual Inversion's script runs its optimiser over the whole table
_DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
_SDXL_UNET = next(config for name, _, _, config in MODELS if name == "Stable Diffusion XL")


@dataclass(frozen=True)
class Size:
    """size_px: of the pictures. width: of Stable Diffusion 1.5's channels, the share that is kept."""

    size_px: int
    width: float = 1.0
    is_xl: bool = False


SIZES = {
    "tiny": Size(64, 0.1),
    "quarter-128": Size(128, 0.25),
    "quarter": Size(256, 0.25),
    "quarter-512": Size(512, 0.25),
    "sd15": Size(512),
    "sdxl": Size(1024, is_xl=True),
}
NAMES = (TOYBOX, *SIZES)


def model_dir(name: str, work: Path) -> Path:
    """The folder of a model of `NAMES`, made where it is not there."""
    if name == TOYBOX:
        return FOUNDATION_DIR
    folder = work / "models" / name
    if not (folder / "model_index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(0)
        size = SIZES[name]
        (_stable_diffusion_xl if size.is_xl else _stable_diffusion)(size).save_pretrained(folder)
    return folder


def size_px(name: str) -> int:
    return 64 if name == TOYBOX else SIZES[name].size_px


def _stable_diffusion(size: Size) -> StableDiffusionPipeline:
    def of(*channels: int) -> tuple[int, ...]:
        return tuple(round(channel * size.width / 16) * 16 for channel in channels)

    tokenizer = _tokenizer()
    (text_width,) = of(768)
    unet = UNet2DConditionModel(
        sample_size=size.size_px // 8,
        block_out_channels=of(320, 640, 1280, 1280),
        down_block_types=_DOWN,
        up_block_types=_UP,
        attention_head_dim=max(1, round(8 * size.width)),  # how many heads; each as wide as it is there
        cross_attention_dim=text_width,
        norm_num_groups=32 if size.width == 1 else 16,
    )
    return StableDiffusionPipeline(
        vae=_autoencoder(of(128, 256, 512, 512), size.size_px),
        text_encoder=_text_encoder(CLIPTextModel, tokenizer, text_width, num_layers=12),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl(size: Size) -> StableDiffusionXLPipeline:
    tokenizer = _tokenizer()
    return StableDiffusionXLPipeline(
        vae=_autoencoder((128, 256, 512, 512), size.size_px),
        text_encoder=_text_encoder(CLIPTextModel, tokenizer, 768, num_layers=12),
        text_encoder_2=_text_encoder(CLIPTextModelWithProjection, tokenizer, 1280, num_layers=32),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(**_SDXL_UNET),
        scheduler=_scheduler(),
    )


def _autoencoder(channels: tuple[int, ...], size_px: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32 if channels[0] % 32 == 0 else 16,
        sample_size=size_px,
    )


def _text_encoder(kind: Callable[[CLIPTextConfig], Any], tokenizer: CLIPTokenizer, width: int, num_layers: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, width // 64),
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return kind(config)


def _tokenizer() -> CLIPTokenizer:
    """The toybox's, with words that nobody says up to the number of CLIP's."""
    there = FOUNDATION_DIR / "tokenizer"
    words = json.loads((there / "vocab.json").read_text(encoding="utf-8"))
    ends = ("<|startoftext|>", "<|endoftext|>")
    plain = [word for word in words if word not in ends]
    unsaid = [f"unsaid{number}</w>" for number in range(_VOCABULARY - len(words))]
    lines = (there / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#")]
    vocabulary = {word: number for number, word in enumerate([*plain, *unsaid, *ends])}
    return CLIPTokenizer(vocabulary, merges, model_max_length=77)


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
