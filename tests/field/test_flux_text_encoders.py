"""Every tensor of a FLUX LoRA is laid on, or the file is refused: also those of CLIP-L and T5, and biases.

huggingface/diffusers #10004 and #12053, kohya-ss/sd-scripts #1803 and #1806, Comfy-Org/ComfyUI #4837,
nunchux-ai/ComfyUI-nunchaku #64: FLUX LoRAs of sd-scripts and OneTrainer that train CLIP-L (lora_te1_) and T5
(lora_te3_).
"""

from pathlib import Path

import pytest
from field_models import Tensors, changes, family_folder, kohya_pair, random, saved

from infusion import UserError

WIDTH, TEXT_WIDTH = 32, 16
SD_SCRIPTS = "lora_unet_double_blocks_0_img_attn_qkv"
COMFYUI = "diffusion_model.double_blocks.0.img_attn.qkv"
QUERIES_KEYS_VALUES = [f"transformer.transformer_blocks.0.attn.to_{one}.weight" for one in "kqv"]


def fused(prefix: str) -> Tensors:
    """A LoRA on the queries, keys and values of an image stream, which the authors' names hold in one layer."""
    return kohya_pair(prefix, 3 * WIDTH, WIDTH)


def changed(folder: Path, tensors: Tensors) -> list[str]:
    return sorted(changes(saved(folder / "lora.safetensors", tensors), family_folder("flux")))


def assert_laid_on_or_refused(folder: Path, tensors: Tensors, part: str) -> None:
    try:
        names = changed(folder, tensors)
    except UserError:
        return
    assert any(part in name for name in names)


def test_transformer_alone_is_laid_on(tmp_path: Path) -> None:
    assert changed(tmp_path, fused(SD_SCRIPTS)) == QUERIES_KEYS_VALUES


@pytest.mark.xfail(strict=True, reason="lora_te1_ is CLIP-L, and is laid on with the transformer")
def test_clip_is_laid_on_with_the_transformer(tmp_path: Path) -> None:
    clip = kohya_pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", TEXT_WIDTH, TEXT_WIDTH)
    names = changed(tmp_path, {**fused(SD_SCRIPTS), **clip})
    assert [name for name in names if name.startswith("text_encoder.")]


@pytest.mark.xfail(strict=True, reason="lora_te3_ is T5: laid on with the transformer, or the file is refused")
def test_t5_is_not_left_out(tmp_path: Path) -> None:
    t5 = kohya_pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q", TEXT_WIDTH, TEXT_WIDTH)
    assert_laid_on_or_refused(tmp_path, {**fused(SD_SCRIPTS), **t5}, "text_encoder_2.")


@pytest.mark.xfail(strict=True, reason="a bias (diff_b) is laid on, or the file is refused")
def test_bias_is_not_left_out(tmp_path: Path) -> None:
    tensors = {**fused(COMFYUI), f"{COMFYUI}.diff_b": random(3 * WIDTH)}
    assert_laid_on_or_refused(tmp_path, tensors, ".bias")


@pytest.mark.xfail(strict=True, reason="a norm of T5 (layer_norm.diff) is laid on, or the file is refused")
def test_norm_of_t5_is_not_left_out(tmp_path: Path) -> None:
    norm = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.layer_norm.diff"
    assert_laid_on_or_refused(tmp_path, {**fused(COMFYUI), norm: random(TEXT_WIDTH)}, "layer_norm")
