"""LoRAs on a UNet's layers outside its blocks are laid on, and told as the UNet's.

huggingface/diffusers #14005, Nerogar/OneTrainer #1544: LoRAs on conv_in, conv_out, time_embedding, add_embedding of a
UNet (LoCon, OneTrainer's "full").
"""

from pathlib import Path

import pytest
import torch
from field_models import TO_V, changes, factors, plain_weights, saved

from infusion.foreign import inspect

LAYERS = ["conv_in", "conv_out", "time_embedding.linear_1"]


def lora_with(layer: str, folder: Path) -> tuple[Path, torch.Tensor]:
    """A file of two layers of the UNet, and how it changes the one that is asked for."""
    tensors: dict[str, torch.Tensor] = {}
    moves: dict[str, torch.Tensor] = {}
    for path in (layer, TO_V):
        weight = plain_weights()[f"unet.{path}.weight"]
        down, up = factors(weight)
        name = "lora_unet_" + path.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        moves[path] = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return saved(folder / "lora.safetensors", tensors), moves[layer]


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_outside_blocks_is_laid_on(layer: str, tmp_path: Path) -> None:
    file, move = lora_with(layer, tmp_path)
    torch.testing.assert_close(changes(file)[f"unet.{layer}.weight"], move, atol=1e-6, rtol=1e-5)


@pytest.mark.xfail(strict=True, reason="conv_in, conv_out and time_embedding beside a UNet's blocks are the UNet's")
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_outside_blocks_is_told_as_the_unets(layer: str, tmp_path: Path) -> None:
    file, _ = lora_with(layer, tmp_path)
    assert inspect(file).touches == "2 layers of the UNet"
