import numpy as np
from PIL import Image

from infusion.pages.images import contact_sheet, grid


def picture(shade: int, side: int = 8) -> Image.Image:
    """An image that can be told from every other one by its shade."""
    return Image.new("RGB", (side, side), (shade, 255 - shade, 40))


def test_grid_keeps_order_and_scale() -> None:
    sheet = grid([picture(shade) for shade in (10, 20, 30)], columns=2, scale=3)
    gap, cell = 4, 24
    assert sheet.size == (gap + 2 * (cell + gap), gap + 2 * (cell + gap))
    starts = [(gap + j * (cell + gap), gap + i * (cell + gap)) for i in (0, 1) for j in (0, 1)]
    reds = [[sheet.getpixel((x + dx, y + dx))[0] for dx in (-1, 0, cell - 1, cell)] for x, y in starts]  # type: ignore[index]
    assert reds == [[255, 10, 10, 255], [255, 20, 20, 255], [255, 30, 30, 255], [255, 255, 255, 255]]


def test_contact_sheet_makes_room_for_labels() -> None:
    rows = [[picture(10, 32), picture(20, 32)], [picture(30, 32), picture(40, 16)]]
    plain = contact_sheet(rows)
    labelled = contact_sheet(rows, row_labels=["base", "customized"], column_labels=["beach", "snow"])
    assert labelled.width > plain.width and labelled.height > plain.height
    left, top = labelled.width - plain.width, labelled.height - plain.height
    assert labelled.crop((left, top, labelled.width, labelled.height)).tobytes() == plain.tobytes()
    assert np.asarray(labelled)[:, :left].min() < 100  # something is written there
