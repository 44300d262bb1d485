"""Folders of regularization images, and the others of a kohya project, are no concepts.

bmaltais/kohya_ss #547, #1849, #3322, #613, Linaqruf/kohya-trainer #50: kohya projects hold the class's regularization
images too: reg/1_cat beside image/10_sks cat, or 1_cat beside 10_sks cat.
"""

from pathlib import Path

import pytest
from field_models import picture, refusal

from infusion.concepts.list import listed_concepts


def names(project: Path) -> list[str | None]:
    return [listed.name for listed in listed_concepts(project, "cat")]


@pytest.mark.xfail(strict=True, reason="regularization images are not learnt as a concept called <cat>")
@pytest.mark.parametrize(
    ("subject", "regularization"),
    [("image/10_sks cat", "reg/1_cat"), ("10_sks cat", "1_cat"), ("train_data/10_sks cat", "reg_data/1_cat")],
)
def test_regularization_pictures_are_no_concept(subject: str, regularization: str, tmp_path: Path) -> None:
    picture(tmp_path / subject / "1.png")
    picture(tmp_path / regularization / "1.png", (40, 40, 200))
    found: list[str | None] = []
    told = refusal(lambda: found.extend(names(tmp_path)))
    assert "cat" not in found
    assert told is None or "'cat'" not in told


@pytest.mark.xfail(strict=True, reason="log/ and model/ are no concepts: sks is found, or image/ is named")
def test_project_of_the_gui_holds_one_concept(tmp_path: Path) -> None:
    picture(tmp_path / "image" / "10_sks cat" / "1.png")
    picture(tmp_path / "reg" / "1_cat" / "1.png")
    for empty in ("log", "model"):
        (tmp_path / empty).mkdir()
    found: list[str | None] = []
    told = refusal(lambda: found.extend(names(tmp_path)))
    assert found == ["sks"] or (told and "image" in told and "log has no images" not in told)
