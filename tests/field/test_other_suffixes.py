"""JPEGs under their other suffixes are read; any other image is named in a note.

Sygil-Dev/sygil-webui PR #1590, visual-layer/fastdup #312, supervisely PR #839, replicate/dreambooth #43: Windows and
browsers save JPEGs as .jfif (also .jpe, .ppm, no suffix at all).
"""

from pathlib import Path

import pytest
from field_models import picture

from infusion import load_concept

FILES = {"cat.jfif": "JPEG", "cat.jpe": "JPEG", "cat.ppm": "PPM", "no-suffix": "JPEG"}


@pytest.mark.xfail(strict=True, reason=".jfif and .jpe are read; what is an image and is not read is named in a note")
@pytest.mark.parametrize("name", FILES)
def test_picture_of_another_suffix_is_read_or_named(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / name, format=FILES[name])
    concept = load_concept(tmp_path, "cat", "x")
    assert name in concept.sources or name in " ".join(concept.warnings)
