"""A concept acts, and acts alone, under SD 3's skip-layer guidance.

huggingface/diffusers #10085, #10455: skip_guidance_layers with several images a prompt on SD 3.
"""

import pytest
from field_models import assert_acts_alone
from tiny_families import tiny


@pytest.mark.parametrize("pictures", [1, 2])
def test_concept_acts_alone_under_skip_layer_guidance(pictures: int) -> None:
    assert_acts_alone(
        tiny("sd-3"),
        skip_guidance_layers=[0],
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
        guidance_scale=4.0,
        num_images_per_prompt=pictures,
        height=16,
        width=16,
    )
