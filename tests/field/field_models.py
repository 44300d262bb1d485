"""What the field cases share: models loaded once, files as other tools write them, a concept that acts."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_families import tiny

from infusion import Adapter, Concept, Infusion, UserError, customize, load_base
from infusion.base import Base
from infusion.foreign import customized, inspect

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
TO_V = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
TOYBOX_TEXT_WIDTH = 160

Tensors = Mapping[str, torch.Tensor]

_random = torch.Generator().manual_seed(0)
_folders = tempfile.TemporaryDirectory(prefix="field-")


@cache
def family_folder(name: str) -> Path:
    """The tiny pipeline of a family, saved once."""
    folder = Path(_folders.name) / name
    tiny(name).save_pretrained(folder)
    return folder


@cache
def plain_base(base: str | Path = "toybox") -> Base:
    """A base that nothing is laid on; only for reading."""
    return load_base(base, "cpu")


@cache
def plain_weights(base: str | Path = "toybox") -> Tensors:
    return weights(plain_base(base))


def weights(base: Base) -> Tensors:
    """Every parameter of its denoiser and text models, by part and path."""
    parts = {name: part for name in PARTS if (part := getattr(base.pipeline, name, None)) is not None}
    return {f"{name}.{path}": p.detach().clone() for name, part in parts.items() for path, p in part.named_parameters()}


def saved(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata)
    return path


def laid_on(path: Path, base: str | Path = "toybox") -> Base:
    return customized(inspect(path), base, "cpu")[0]


def changes(path: Path, base: str | Path = "toybox") -> Tensors:
    """By how much the file moves each weight that it moves."""
    plain = plain_weights(base)
    now = weights(laid_on(path, base))
    return {name: now[name] - plain[name] for name in now if not torch.equal(now[name], plain[name])}


def refusal(call: Callable[[], object]) -> str | None:
    """What the person is told where it is refused; any other error is none of the product's."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_random)


def factors(weight: torch.Tensor, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Random down and up projections that fit a linear or convolutional weight."""
    down = random(rank, *weight.shape[1:]) / 10
    return down, random(weight.shape[0], rank, *[1] * (weight.dim() - 2)) / 10


def kohya_pair(prefix: str, rows: int, columns: int, rank: int = 2) -> Tensors:
    down, up = random(rank, columns), random(rows, rank)
    return {f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up}


def peft_pair(prefix: str, rows: int, columns: int, rank: int = 2) -> Tensors:
    down, up = random(rank, columns), random(rows, rank)
    return {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}


def toybox_lora() -> Tensors:
    """A LoRA on one layer of the toybox, in diffusers' names."""
    down, up = factors(plain_weights()[f"unet.{TO_V}.weight"])
    return {f"unet.{TO_V}.lora_A.weight": down, f"unet.{TO_V}.lora_B.weight": up}


def picture(path: Path, color: tuple[int, int, int] = (200, 40, 40), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), color).save(path, **options)
    return path


def acting_adapter(pipeline: Any) -> Adapter:
    """An adapter for <my-cat> of random residuals: it changes every prediction it is asked to."""
    concept = Concept("my-cat", "cat", (Image.new("RGB", (64, 64)),), (None,), (None,), ("1.png",))
    adapter = Infusion().adapter(Base.from_pipeline(pipeline), concept)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=0.5)
    return adapter.eval()


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def drawn(pipeline: Any, prompts: Sequence[str], **settings: Any) -> np.ndarray:
    """Three steps, unless settings say otherwise; each image from a seed of its own."""
    settings = {"num_inference_steps": 3} | settings
    count = len(prompts) * settings.get("num_images_per_prompt", 1)
    return np.asarray(pipeline(list(prompts), generator=seeds(count), output_type="np", **settings).images)


def assert_acts_alone(pipeline: Any, **settings: Any) -> None:
    """The concept acts on its own row, and the other row is to the bit what it was."""
    plain = drawn(pipeline, ["a cat", "a dog"], **settings)
    custom = drawn(customize(pipeline, acting_adapter(pipeline)), ["a <my-cat>", "a dog"], **settings)
    half = len(plain) // 2
    assert np.abs(custom[:half] - plain[:half]).max() > 1e-4
    assert np.array_equal(custom[half:], plain[half:])
