"""Sound files are read, and a file that cannot be is called what it is.

Comfy-Org/ComfyUI PR #3316 (PNGs with a large colour profile: a calibrated monitor's), replicate/dreambooth #43 and
#23 (HEIC under another suffix), large workflow texts in PNGs.
"""

from pathlib import Path

import numpy as np
import pytest
from field_models import picture
from PIL.PngImagePlugin import PngInfo

from infusion import load_concept


@pytest.mark.xfail(strict=True, reason="a PNG with a colour profile of 1.5 MB is read, as viewers do")
def test_large_colour_profile_is_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 3 << 19, np.uint8).tobytes()
    picture(tmp_path / "0.png")
    picture(tmp_path / "1.png", icc_profile=b"\0" * 128 + noise)
    assert load_concept(tmp_path, "cat", "x").sources == ("0.png", "1.png")


@pytest.mark.xfail(strict=True, reason="a PNG with a text of 3 MB is read, as viewers do")
def test_large_text_is_read(tmp_path: Path) -> None:
    workflow = PngInfo()
    workflow.add_text("workflow", "x" * (3 << 20), zip=True)
    picture(tmp_path / "0.png")
    picture(tmp_path / "1.png", pnginfo=workflow)
    assert load_concept(tmp_path, "cat", "x").sources == ("0.png", "1.png")


@pytest.mark.xfail(strict=True, reason="HEIC under the suffix .jpg is called HEIC, not damaged")
def test_heic_under_another_suffix_is_called_heic(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    (tmp_path / "1.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99)
    notes = " ".join(load_concept(tmp_path, "cat", "x").warnings).replace(str(tmp_path), "")
    assert "HEIC" in notes.upper()
