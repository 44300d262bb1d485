"""Captions of metadata that are no text: a list gives one of its texts, NaN gives none, an object is refused.

Nerogar/OneTrainer #182, shootthesound/Fizgig #148 (several captions an image), diffusers' train_text_to_image (a
text may be a list); pandas writes NaN for a missing one.
"""

from pathlib import Path

import pytest
from field_models import picture

from infusion import UserError, load_concept


def caption_or_refusal(folder: Path, text: str) -> str | UserError | None:
    picture(folder / "1.png")
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "1.png", "text": {text}}}\n')
    try:
        return load_concept(folder, "cat", "x").captions[0]
    except UserError as error:
        return error


@pytest.mark.xfail(strict=True, reason="a list of texts gives one of them, NaN none; an object is refused by its line")
@pytest.mark.parametrize(
    ("text", "right"),
    [
        pytest.param('["a cat on a sofa", "one cat"]', ("a cat on a sofa", "one cat", None), id="list"),
        pytest.param("NaN", (None,), id="NaN"),
        pytest.param('{"en": "a cat"}', ("a cat", None), id="object"),
    ],
)
def test_pythons_spelling_of_a_caption_is_not_learnt(text: str, right: tuple[str | None, ...], tmp_path: Path) -> None:
    got = caption_or_refusal(tmp_path, text)
    assert isinstance(got, UserError) or got in right


def test_lines_of_a_caption_file_are_joined(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("a cat on a sofa\na photo of one cat, indoors\ncat, sofa\n")
    joined = "a cat on a sofa a photo of one cat, indoors cat, sofa"
    assert load_concept(tmp_path, "cat", "x").captions == (joined,)
