"""A concept acts with embeddings of several windows, and is refused in one sentence beyond the window.

huggingface/diffusers #2136, damian0815/compel #79 and #45: prompts beyond the window, embeddings of several windows
beside the text.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from field_models import acting_adapter, refusal, seeds
from tiny_families import tiny

from infusion import customize


@cache
def pipelines() -> tuple[Any, Any]:
    """The tiny pipeline, and the one in which <my-cat> acts."""
    pipeline = tiny("sd-1")
    return pipeline, customize(pipeline, acting_adapter(pipeline))


def test_concept_acts_with_two_windows_of_embeddings() -> None:
    pipeline, custom = pipelines()

    def windows(*texts: str) -> torch.Tensor:
        return torch.cat([pipeline.encode_prompt(text, "cpu", 1, False)[0] for text in texts], dim=1)

    settings = {
        "prompt_embeds": windows("a cat", "on a beach"),
        "negative_prompt_embeds": windows("", ""),
        "num_inference_steps": 3,
        "output_type": "np",
    }
    plain = pipeline(generator=seeds(1), **settings).images
    acting = custom("a <my-cat> on a beach", generator=seeds(1), **settings).images
    assert np.abs(acting - plain).max() > 1e-4


def test_concept_beyond_the_window_is_refused() -> None:
    _, custom = pipelines()
    told = refusal(lambda: custom("very " * 30 + "<my-cat>", num_inference_steps=1))
    assert told and "shorten the prompt" in told
