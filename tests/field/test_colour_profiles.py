"""The pixels of an image with a colour profile are those that a viewer shows.

Comfy-Org/ComfyUI #11101 (and PR #11241), chaiNNer-org/chaiNNer #2599: photos with Display P3 or Adobe RGB profiles
(every iPhone) are read as if they were sRGB.
"""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from field_models import picture
from PIL import Image, ImageCms

from infusion import load_concept

COLOR = (60, 180, 60)
D50 = (0.9642, 1, 0.8249)
PRIMARIES = {
    "Display P3": ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),
    "Adobe RGB": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
}

XYZ = tuple[float, float, float]


def fixed_point(values: XYZ) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(red: XYZ, green: XYZ, blue: XYZ) -> bytes:
    """An ICC profile of these primaries, with a gamma of 2.2."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + b"\0" * 78
    colors = {b"wtpt": D50, b"rXYZ": red, b"gXYZ": green, b"bXYZ": blue}
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0x\0"}
    tags |= {name: b"XYZ \0\0\0\0" + fixed_point(values) for name, values in colors.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    start, table, data = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    head = struct.pack(">I4s4s4s4s4s", start + len(data), b"lcms", b"\x02\x10\0\0", b"mntr", b"RGB ", b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + fixed_point(D50)
    return head.ljust(128, b"\0") + table + data


@pytest.mark.xfail(strict=True, reason="an image that carries a colour profile is converted to sRGB")
@pytest.mark.parametrize("name", PRIMARIES)
def test_wide_colours_become_srgb(name: str, tmp_path: Path) -> None:
    icc = profile(*PRIMARIES[name])
    picture(tmp_path / "1.png", COLOR, icc_profile=icc)
    pixel = Image.new("RGB", (1, 1), COLOR)
    shown = ImageCms.profileToProfile(pixel, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"))
    assert shown is not None
    read = np.asarray(load_concept(tmp_path, "cat", "x").images[0])[30, 30]
    np.testing.assert_allclose(read, np.asarray(shown)[0, 0], atol=5)
