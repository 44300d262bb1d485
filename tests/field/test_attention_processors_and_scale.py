"""A concept acts, and acts alone, whatever computes the attention.

huggingface/diffusers #7263 (attention slicing breaks IP-Adapter's processors), #1405, #7519 (cross_attention_kwargs
scale).
"""

from collections.abc import Callable
from typing import Any

import pytest
from diffusers.models.attention_processor import AttnProcessor
from field_models import assert_acts_alone
from tiny_families import tiny

CHANGES: dict[str, Callable[[Any], None]] = {
    "slicing": lambda pipeline: pipeline.enable_attention_slicing(),
    "slices of 1": lambda pipeline: pipeline.enable_attention_slicing(1),
    "AttnProcessor": lambda pipeline: pipeline.unet.set_attn_processor(AttnProcessor()),
    "gradient checkpointing": lambda pipeline: pipeline.unet.enable_gradient_checkpointing(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_concept_acts_alone_in_changed_attention(change: str) -> None:
    pipeline = tiny("sd-1")
    CHANGES[change](pipeline)
    assert_acts_alone(pipeline)


def test_concept_acts_alone_under_a_scale_of_cross_attention() -> None:
    assert_acts_alone(tiny("sd-1"), cross_attention_kwargs={"scale": 0.5})
