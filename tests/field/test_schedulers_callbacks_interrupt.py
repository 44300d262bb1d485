"""A concept acts, and acts alone, under any scheduler and callback.

huggingface/diffusers docs and #3212: dynamic guidance in callback_on_step_end, interrupting, second-order and
ancestral schedulers, num_images_per_prompt.
"""

from typing import Any

import diffusers
import pytest
from field_models import assert_acts_alone
from tiny_families import tiny

# Schedulers of diffusers give torch's tensors to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SCHEDULERS = [
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "UniPCMultistepScheduler",
]


def end_guidance(pipeline: Any, step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The documentation's dynamic guidance: from the second step on, there is none."""
    if step == 1:
        pipeline._guidance_scale = 0.0
        given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[-1]
    return given


def interrupt(pipeline: Any, step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipeline._interrupt = step >= 1
    return given


@pytest.mark.parametrize("name", SCHEDULERS)
def test_concept_acts_alone_under_a_scheduler(name: str) -> None:
    pipeline = tiny("sd-1")
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    assert_acts_alone(pipeline)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"callback_on_step_end": end_guidance, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
            id="guidance ends half-way",
        ),
        pytest.param({"callback_on_step_end": interrupt}, id="interrupted"),
    ],
)
def test_concept_acts_alone_under_a_callback(settings: dict[str, Any]) -> None:
    assert_acts_alone(tiny("sd-1"), num_inference_steps=4, **settings)


def test_concept_acts_alone_in_several_pictures_a_prompt() -> None:
    assert_acts_alone(tiny("sd-1"), num_images_per_prompt=3)
