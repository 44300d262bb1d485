"""The shipped foundation model: loads as any Stable Diffusion does, knows its world's words, and its card is true."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from infusion.foundation.card import model_card
from infusion.toybox import FOUNDATION_DIR
from infusion.toybox.captions import HOURS, PLACES
from infusion.toybox.scene import CLASSES, COLORS


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(FOUNDATION_DIR)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_draws_in_a_plain_pipeline(pipeline):
    draw = {"num_inference_steps": 8, "guidance_scale": 5.0}
    pictures = [
        pipeline(prompt, generator=torch.Generator().manual_seed(0), output_type="pt", **draw).images[0]
        for prompt in ("a red car in the snow", "a red car in the snow", "a blue car under the night sky")
    ]
    assert pictures[0].shape == (3, 64, 64)
    assert torch.equal(pictures[0], pictures[1])
    assert pictures[0].mean() > pictures[2].mean() + 0.2  # snow is bright, the night is dark


def test_its_weights_are_in_half_precision():
    for file in FOUNDATION_DIR.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} <= {"F16", "I64"}, file  # noqa: SIM118
    assert sum(file.stat().st_size for file in FOUNDATION_DIR.rglob("*")) < 30e6


def test_every_word_of_the_world_is_one_token(pipeline):
    words = " ".join(
        [*CLASSES, *COLORS, *(phrase for table in (PLACES, HOURS) for some in table.values() for phrase in some)]
    )
    for word in set(words.split()):
        assert len(pipeline.tokenizer.tokenize(word)) == 1, word


def test_the_card_is_what_was_measured_and_recorded():
    assert (FOUNDATION_DIR / "README.md").read_text() == model_card(FOUNDATION_DIR)
    gates = json.loads((FOUNDATION_DIR / "gates.json").read_text())["gates"]
    for gate in gates:
        passed = None if gate["at_least"] is None else gate["value"] >= gate["at_least"]
        assert gate["passed"] == passed and gate["low"] <= gate["value"] <= gate["high"]
