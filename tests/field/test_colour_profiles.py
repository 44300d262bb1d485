"""Images with a wide colour profile: what is learnt is what a viewer shows.

Phones write Display P3, cameras Adobe RGB: Comfy-Org/ComfyUI #11101 and PR #11241, chaiNNer-org/chaiNNer #2599.
"""

import io
import struct
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from infusion.concepts.concept import load_concept

GREEN = (60, 180, 60)
XYZ = tuple[float, float, float]
D50: XYZ = (0.9642, 1.0, 0.8249)
# The colorants red, green and blue of each space, adapted to D50.
SPACES: dict[str, tuple[XYZ, XYZ, XYZ]] = {
    "Display P3": ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),
    "Adobe RGB": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
}


def fixed(value: float) -> bytes:
    """ICC's s15Fixed16Number."""
    return struct.pack(">i", round(value * 65536))


def profile(colorants: tuple[XYZ, XYZ, XYZ]) -> bytes:
    """An ICC profile of version 2 with a gamma of 2.2."""

    def xyz(value: XYZ) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, value))

    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0x\0", b"wtpt": xyz(D50)}
    tags |= {name + b"XYZ": xyz(colorant) for name, colorant in zip((b"r", b"g", b"b"), colorants, strict=True)}
    tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    start, table, data = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4s4s4s4s4s", start + len(data), b"lcms", b"\x02\x10\0\0", b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(fixed, D50))
    return head.ljust(128, b"\0") + table + data


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="colour profiles become sRGB")
@pytest.mark.parametrize("space", list(SPACES))
def test_a_wide_colour_profile(tmp_path: Path, space: str) -> None:
    wide = profile(SPACES[space])
    Image.new("RGB", (64, 64), GREEN).save(tmp_path / "1.png", icc_profile=wide)
    source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(wide)), ImageCms.createProfile("sRGB")
    shown = ImageCms.profileToProfile(Image.new("RGB", (1, 1), GREEN), source, srgb)
    assert shown is not None
    learnt = load_concept(tmp_path, "cat", "my-cat").images[0].getpixel((30, 30))
    pairs = zip(learnt, shown.getpixel((0, 0)), strict=True)  # type: ignore[arg-type]
    assert max(abs(a - b) for a, b in pairs) < 6
