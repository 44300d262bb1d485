"""OneTrainer's names of the text models, clip_l. and clip_g., are read as its names of the UNet are.

Nerogar/OneTrainer #885, PR #1563: its OMI format: unet.output_blocks.5.1..., clip_l.text_model...,
clip_g.text_model..., t5.encoder...
"""

from pathlib import Path

import pytest
from field_models import Tensors, changes, family_folder, kohya_pair, plain_weights, saved

QUERIES = "text_model.encoder.layers.0.self_attn.q_proj"


def unet() -> Tensors:
    return kohya_pair("unet.input_blocks.3.1.transformer_blocks.0.attn2.to_v", 32, 40)


def changed(folder: Path, tensors: Tensors) -> list[str]:
    return sorted(changes(saved(folder / "lora.safetensors", tensors), family_folder("sdxl")))


def queries_of(part: str) -> str:
    """Where the weights are of the queries in the first layer of a text model."""
    names = plain_weights(family_folder("sdxl"))
    return next(name for name in names if name.startswith(f"{part}.") and name.endswith("0.self_attn.q_proj.weight"))


def test_unet_is_laid_on(tmp_path: Path) -> None:
    assert changed(tmp_path, unet()) == ["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight"]


@pytest.mark.xfail(strict=True, reason="clip_l. and clip_g. are the text models, as lora_te1_ and lora_te2_ are")
def test_both_text_models_are_laid_on_with_the_unet(tmp_path: Path) -> None:
    text_models = {"clip_l": queries_of("text_encoder"), "clip_g": queries_of("text_encoder_2")}
    shapes = {name: plain_weights(family_folder("sdxl"))[path].shape for name, path in text_models.items()}
    tensors = dict(unet())
    for name, shape in shapes.items():
        tensors |= kohya_pair(f"{name}.{QUERIES}", *shape)
    names = changed(tmp_path, tensors)
    assert len(names) == 3
    assert set(text_models.values()) < set(names)
