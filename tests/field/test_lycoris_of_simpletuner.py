"""LyCORIS files in SimpleTuner's names are laid on.

Comfy-Org/ComfyUI #5417, vladmandic/sdnext #3405: lycoris_transformer_blocks_0_attn_to_q.lokr_w1 of SD 3.5 and FLUX.
"""

from pathlib import Path

import pytest
import torch
from field_models import changes, family_folder, plain_weights, random, saved

LAYER = "lycoris_transformer_blocks_0_attn_to_q"
WEIGHT = "transformer.transformer_blocks.0.attn.to_q.weight"


@pytest.mark.parametrize("family", ["flux", "sd-3"])
def test_lokr_is_laid_on(family: str, tmp_path: Path) -> None:
    base = family_folder(family)
    side = plain_weights(base)[WEIGHT].shape[0] // 4
    tensors = {
        f"{LAYER}.lokr_w1": random(4, 4),
        f"{LAYER}.lokr_w2": random(side, side),
        f"{LAYER}.alpha": torch.tensor(1.0),
    }
    assert list(changes(saved(tmp_path / "lokr.safetensors", tensors), base)) == [WEIGHT]
