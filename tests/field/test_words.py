"""Words around the placeholder: people write the noun after it, as the convention of Custom Diffusion has it.

huggingface/diffusers #10791 and PR #10792.
"""

import contextlib

import pytest

from infusion.base.prompts import name_concept, parse_prompt
from infusion.errors import UserError

not_twice = pytest.mark.xfail(strict=True, reason="the noun after the placeholder is read once, or refused")


@not_twice
@pytest.mark.parametrize("text", ["a <my-cat> cat on the beach", "photo of a <my-cat> cat, close-up"])
def test_the_noun_after_the_placeholder(text: str) -> None:
    with contextlib.suppress(UserError):
        assert "cat cat" not in parse_prompt(text, {"my-cat": "cat"}).text


@not_twice
def test_captions_of_custom_diffusion() -> None:
    try:
        caption = name_concept("photo of a <new1> cat on a sofa", "<new1>", "cat")
        assert "cat cat" not in parse_prompt(caption, {"new1": "cat"}).text
    except UserError:
        pass
