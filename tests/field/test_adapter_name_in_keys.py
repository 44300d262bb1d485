"""The name of the adapter in its tensors' names does not matter.

huggingface/diffusers #11675, #6382, #12053: tensors saved with the adapter's name in them:
to_v.lora_A.default_0.weight, lora_B.my_style.weight.
"""

from pathlib import Path

import pytest
import torch
from field_models import TO_V, changes, factors, plain_weights, saved

any_name = pytest.mark.xfail(strict=True, reason="lora_A.NAME.weight is read as lora_A.weight, whatever the name")


@pytest.mark.parametrize(
    "name", ["default", pytest.param("default_0", marks=any_name), pytest.param("my_style", marks=any_name)]
)
def test_adapter_of_any_name_is_laid_on(name: str, tmp_path: Path) -> None:
    layer = f"unet.{TO_V}"
    down, up = factors(plain_weights()[f"{layer}.weight"])
    tensors = {f"{layer}.lora_A.{name}.weight": down, f"{layer}.lora_B.{name}.weight": up}
    moved = changes(saved(tmp_path / "lora.safetensors", tensors))
    assert list(moved) == [f"{layer}.weight"]
    torch.testing.assert_close(moved[f"{layer}.weight"], up @ down, atol=1e-6, rtol=0)
