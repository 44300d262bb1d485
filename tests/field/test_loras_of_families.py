"""LoRAs of other tools for XL, SD 3 and FLUX.1: every tensor is applied, or named in a refusal."""

import contextlib
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_families import tiny
from torch import Tensor

from infusion.base import Base, load_base
from infusion.errors import UserError
from infusion.foreign import customized, inspect

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


def not_yet(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name in ("sdxl", "sd-3", "flux"):
        tiny(name).save_pretrained(folder / name)
    return folder


def weights(base: Base) -> dict[str, Tensor]:
    there = {part: getattr(base.pipeline, part, None) for part in PARTS}
    return {
        f"{part}.{name}": weight.detach().clone()
        for part, module in there.items()
        if module is not None
        for name, weight in module.named_parameters()
    }


@cache
def untouched(base: Path) -> dict[str, Tensor]:
    return weights(load_base(base, "cpu"))


def changed(base: Path, tensors: dict[str, Tensor], folder: Path) -> str:
    """Names of the weights that a file changes, one a line."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "lora.safetensors")
    now = weights(customized(inspect(folder / "lora.safetensors"), base, "cpu")[0])
    return "\n".join(name for name in now if not torch.equal(now[name], untouched(base)[name]))


def pair(prefix: str, rows: int, columns: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
    return {f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up}


def pair_for(base: Path, prefix: str, weight: str) -> dict[str, Tensor]:
    rows, columns = untouched(base)[weight].shape
    return pair(prefix, rows, columns)


def applied_or_refused(base: Path, tensors: dict[str, Tensor], folder: Path, part: str) -> None:
    with contextlib.suppress(UserError):
        assert part in changed(base, tensors, folder)


# sd-scripts' and OneTrainer's FLUX LoRAs with text models: huggingface/diffusers #10004 and #12053,
# kohya-ss/sd-scripts #1803 and #1806, Comfy-Org/ComfyUI #4837, nunchux-ai/ComfyUI-nunchaku #64.

FLUX = pair("lora_unet_double_blocks_0_img_attn_qkv", 96, 32)
_SD_SCRIPTS, _BFL = "lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.qkv"
COMFY = {name.replace(_SD_SCRIPTS, _BFL): tensor for name, tensor in FLUX.items()}
COMFY |= {"diffusion_model.double_blocks.0.img_attn.qkv.diff_b": torch.ones(96)}


def test_flux_s_transformer_alone(families: Path, tmp_path: Path) -> None:
    assert changed(families / "flux", FLUX, tmp_path).count("attn.to_") == 3


@not_yet("CLIP-L is applied to")
def test_flux_with_clip(families: Path, tmp_path: Path) -> None:
    clip = pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 16, 16)
    assert "text_encoder." in changed(families / "flux", FLUX | clip, tmp_path)


@not_yet("T5 is applied to, or refused")
def test_flux_with_t5(families: Path, tmp_path: Path) -> None:
    t5 = pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 16, 16)
    applied_or_refused(families / "flux", FLUX | t5, tmp_path, "text_encoder_2")


@not_yet("a bias is applied to, or refused")
def test_flux_with_a_bias(families: Path, tmp_path: Path) -> None:
    applied_or_refused(families / "flux", COMFY, tmp_path, ".bias")


@not_yet("T5's norms are applied to, or refused")
def test_flux_with_a_norm_of_t5(families: Path, tmp_path: Path) -> None:
    norm = {"text_encoders.t5xxl.transformer.encoder.block.0.layer.0.layer_norm.diff": torch.ones(16)}
    applied_or_refused(families / "flux", COMFY | norm, tmp_path, "layer_norm")


# OneTrainer's OMI format: Nerogar/OneTrainer #885, PR #1563.

OMI = pair("unet.input_blocks.3.1.transformer_blocks.0.attn2.to_v", 32, 40)


def test_omi_s_unet(families: Path, tmp_path: Path) -> None:
    assert "attn2.to_v" in changed(families / "sdxl", OMI, tmp_path)


@not_yet("OMI's text models are read")
def test_omi_with_both_text_models(families: Path, tmp_path: Path) -> None:
    base, layer = families / "sdxl", "encoder.layers.0.self_attn.q_proj"
    texts = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    tensors = dict(OMI)
    for prefix, part in texts.items():
        weight = next(name for name in untouched(base) if name.startswith(f"{part}.") and f"{layer}.weight" in name)
        tensors |= pair_for(base, f"{prefix}.text_model.{layer}", weight)
    assert "text_encoder_2" in changed(base, tensors, tmp_path)


# The authors' own names: Comfy-Org/ComfyUI #3701, huggingface/diffusers #13137, vladmandic/sdnext #3405.

AUTHORS = {
    "FLUX, lora_A": (
        "flux",
        {
            "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(2, 32),
            "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": torch.ones(96, 2),
        },
    ),
    "FLUX, LoKr": (
        "flux",
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": torch.ones(4, 4),
            "lora_unet_double_blocks_0_img_attn_qkv.lokr_w2": torch.ones(24, 8),
        },
    ),
    "SD 3, sd-scripts": ("sd-3", pair("lora_unet_joint_blocks_0_x_block_attn_qkv", 48, 16)),
}


@not_yet("read, or refused as not read; it was made for this model")
@pytest.mark.parametrize("kind", list(AUTHORS))
def test_the_authors_own_names(families: Path, tmp_path: Path, kind: str) -> None:
    name, tensors = AUTHORS[kind]
    try:
        changed(families / name, tensors, tmp_path)
    except UserError as error:
        assert "made for another model" not in str(error)


# SimpleTuner's LyCORIS: Comfy-Org/ComfyUI #5417, vladmandic/sdnext #3405.


@pytest.mark.parametrize("name", ["flux", "sd-3"])
def test_lycoris_of_simpletuner(families: Path, tmp_path: Path, name: str) -> None:
    weight, layer = "transformer.transformer_blocks.0.attn.to_q.weight", "lycoris_transformer_blocks_0_attn_to_q"
    side = untouched(families / name)[weight].shape[0] // 4
    generator = torch.Generator().manual_seed(0)
    factors = {
        "lokr_w1": torch.randn(4, 4, generator=generator),
        "lokr_w2": torch.randn(side, side, generator=generator),
    }
    tensors = {f"{layer}.{key}": tensor for key, tensor in (factors | {"alpha": torch.tensor(1.0)}).items()}
    assert changed(families / name, tensors, tmp_path) == weight


# Projections of text models, and T5: Nerogar/OneTrainer #314, #47, Comfy-Org/ComfyUI #3701.


def test_xl_s_text_projection(families: Path, tmp_path: Path) -> None:
    weight = "text_encoder_2.text_projection.weight"
    tensors = pair_for(families / "sdxl", "lora_te2_text_projection", weight)
    assert weight in changed(families / "sdxl", tensors, tmp_path)


def test_sd_3_s_t5_and_text_projection(families: Path, tmp_path: Path) -> None:
    weight = "text_encoder.text_projection.weight"
    tensors = pair_for(families / "sd-3", "lora_te1_text_projection", weight)
    tensors |= pair("lora_te3_encoder_block_0_layer_0_SelfAttention_k", 16, 32)
    found = changed(families / "sd-3", tensors, tmp_path)
    assert weight in found and "text_encoder_3" in found
