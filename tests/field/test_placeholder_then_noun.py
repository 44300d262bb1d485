"""People write the placeholder and the noun after it.

huggingface/diffusers #10791, PR #10792: how several concepts of Custom Diffusion are prompted; its convention is
"photo of a <new1> cat".
"""

import pytest

from infusion.base.prompts import name_concept, parse_prompt


@pytest.mark.xfail(strict=True, reason="the noun after the placeholder is read once, or the doubled noun is refused")
@pytest.mark.parametrize("prompt", ["a <my-cat> cat on the beach", "photo of a <my-cat> cat, close-up"])
def test_noun_after_the_placeholder_is_not_doubled_in_a_prompt(prompt: str) -> None:
    assert "cat cat" not in parse_prompt(prompt, {"my-cat": "cat"}).text


@pytest.mark.xfail(strict=True, reason="a caption with the placeholder and its noun reads the noun once")
def test_noun_after_the_placeholder_is_not_doubled_in_a_caption() -> None:
    caption = name_concept("photo of a <new1> cat on a sofa", "<new1>", "cat")
    assert "cat cat" not in parse_prompt(caption, {"new1": "cat"}).text
