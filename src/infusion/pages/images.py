"""Images -> one image: a grid, or a sheet with labels."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_PIXELATED_SIDE_PX = 48  # up to here an image is enlarged with visible pixels; above, smoothly


def is_pixelated(image: Image.Image) -> bool:
    """Whether an image is so small that its pixels are to be seen."""
    return max(image.size) <= _PIXELATED_SIDE_PX


def grid(images: Sequence[Image.Image], columns: int, scale: int = 1) -> Image.Image:
    """Images -> one image, row by row, each enlarged `scale` times."""
    return contact_sheet([images[i : i + columns] for i in range(0, len(images), columns)], scale=scale)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    scale: int = 1,
    gap_px: int = 4,
) -> Image.Image:
    """Rows of images -> one RGB image on white, with labels to the left and above where there are any.

    Every cell is as large as the largest image times `scale`; smaller ones stand in the middle of theirs.
    """
    cells = [[_enlarged(image, scale) for image in row] for row in rows]
    assert any(cells), "a contact sheet needs at least one image"
    width = max(image.width for row in cells for image in row)
    height = max(image.height for row in cells for image in row)
    font_px = max(12, min(width, height) // 9)
    font = ImageFont.load_default(size=font_px)
    left = max((math.ceil(font.getlength(label)) + 3 * gap_px for label in row_labels), default=gap_px)
    top = round(font_px * 1.5) + gap_px if column_labels else gap_px
    columns = max(len(row) for row in cells)
    size = (left + columns * (width + gap_px), top + len(cells) * (height + gap_px))

    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(row_labels):
        draw.text((left - 2 * gap_px, top + i * (height + gap_px) + height / 2), label, "black", font, anchor="rm")
    for j, label in enumerate(column_labels):
        draw.text((left + j * (width + gap_px) + width / 2, top / 2), label, "black", font, anchor="mm")
    for i, row in enumerate(cells):
        for j, image in enumerate(row):
            x = left + j * (width + gap_px) + (width - image.width) // 2
            y = top + i * (height + gap_px) + (height - image.height) // 2
            sheet.paste(image, (x, y))
    return sheet


def _enlarged(image: Image.Image, scale: int) -> Image.Image:
    resampling = Image.Resampling.NEAREST if is_pixelated(image) else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((image.width * scale, image.height * scale), resampling)
