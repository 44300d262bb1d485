"""A model card's front matter is read as YAML, and its body is not.

Model cards as the Hub writes them (huggingface/diffusers PR #5883 and later scripts): base_model as a list, a folded
instance_prompt (`>-`), an example config in the body.
"""

from pathlib import Path

import pytest
from field_models import saved, toybox_lora

from infusion.foreign import inspect

PLAIN = "---\nbase_model: some/model\ninstance_prompt: a photo of sks dog\n---\n"
FOLDED = "---\nbase_model: some/model\ninstance_prompt: >-\n  a photo of sks dog\n---\n"
LIST_OF_BASES = "---\nbase_model:\n- some/model\ninstance_prompt: a photo of sks dog\n---\n"
EXAMPLE_IN_THE_BODY = PLAIN + "# Config\nbase_model: other/model\ninstance_prompt: a photo of xyz bird\n"

as_yaml = pytest.mark.xfail(strict=True, reason="the front matter is YAML: folded texts and lists are read")
front_matter_only = pytest.mark.xfail(strict=True, reason="only the front matter counts, not an example in the body")


@pytest.mark.parametrize(
    "card",
    [
        pytest.param(PLAIN, id="plain"),
        pytest.param(FOLDED, id="folded", marks=as_yaml),
        pytest.param(LIST_OF_BASES, id="list-of-bases", marks=as_yaml),
        pytest.param(EXAMPLE_IN_THE_BODY, id="example-in-the-body", marks=front_matter_only),
    ],
)
def test_card_tells_trigger_and_base(card: str, tmp_path: Path) -> None:
    saved(tmp_path / "pytorch_lora_weights.safetensors", toybox_lora())
    (tmp_path / "README.md").write_text(card)
    found = inspect(tmp_path)
    assert (found.trigger, found.base) == ("sks dog", "some/model")
