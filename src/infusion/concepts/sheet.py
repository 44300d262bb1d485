"""A concept -> what training will see of it: a sheet to look at, and a tidy folder that reads back to it."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from infusion.base import Base
from infusion.base.prompts import name_concept
from infusion.concepts.concept import Concept
from infusion.concepts.crop import cropped, training_size
from infusion.concepts.folder import ABOUT
from infusion.concepts.masks import SubjectMask, subject_masks
from infusion.errors import UserError
from infusion.files import check_writable, save_png, whole_file

_LITTLE, _NEARLY_ALL, _MUCH_CUT = 0.02, 0.9, 0.1  # shares beyond which a person should look
_NOT_LEARNT = (255, 0, 160)  # a colour that few images have
_GREY, _RED = "#6e6e6e", "#be1e14"
_SIDE_PX, _SMALL_SIDE_PX, _FEW = 192, 96, 60  # of an image on the sheet, while there are few
_GAP_PX, _FONT_PX = 16, 13


@dataclass(frozen=True)
class Seen:
    """One image as training sees it.

    caption: as training reads it, with the placeholder; None where templates take its place. notes: what a person
    should know of it, in a few words each.
    """

    source: str
    image: Image.Image
    mask: SubjectMask
    caption: str | None
    notes: tuple[str, ...]


def seen(base: Base, concept: Concept, crop: str = "square") -> list[Seen]:
    """Every image of a concept as training sees it; images without a mask get the base's attention."""
    images = []
    earlier: dict[bytes, str] = {}
    masks = subject_masks(base, concept, crop)
    for i, (image, mask, source) in enumerate(zip(concept.images, masks, concept.sources, strict=True)):
        size = training_size(image.size, base, crop)
        notes = [f"only {image.width} x {image.height} px: is enlarged"] if _is_enlarged(image.size, size) else []
        notes += _mask_notes(mask, concept.masks[i], image.size, size)
        same = earlier.setdefault(image.tobytes(), source)
        notes += [f"the same image as {same}"] if same != source else []
        caption = concept.captions[i]
        try:
            caption = caption and name_concept(caption, concept.placeholder, concept.class_noun)
        except UserError:
            notes.append(f'the caption names neither {concept.placeholder} nor "{concept.class_noun}"')
        images.append(Seen(source, cropped(image, base, crop), mask, caption, tuple(notes)))
    return images


def _is_enlarged(size: tuple[int, int], seen_size: tuple[int, int]) -> bool:
    return size[0] < seen_size[0] or size[1] < seen_size[1]


def _mask_notes(
    mask: SubjectMask, given: Image.Image | None, size: tuple[int, int], seen_size: tuple[int, int]
) -> list[str]:
    """given: the mask of the whole image, where there is one."""
    notes = []
    if given is not None and (cut := _cut_off(given, size, seen_size)) > _MUCH_CUT:
        notes.append(f"{cut:.0%} of the subject is cut off")
    if mask.coverage < _LITTLE:
        notes.append("the mask marks next to nothing")
    elif mask.coverage > _NEARLY_ALL:
        notes.append("the mask marks nearly all: the background is learnt too")
    return notes


def _cut_off(mask: Image.Image, size: tuple[int, int], seen_size: tuple[int, int]) -> float:
    """Share of what a mask marks that lies outside the middle of this shape."""
    levels = np.asarray(mask, dtype=np.float64)
    scale = min(size[0] / seen_size[0], size[1] / seen_size[1])
    left, top = ((length - seen_length * scale) / 2 for length, seen_length in zip(size, seen_size, strict=True))
    kept = levels[round(top) : round(size[1] - top), round(left) : round(size[0] - left)]
    return 1 - float(kept.sum() / max(levels.sum(), 1))


# --- the sheet ---


def sheet(concept: Concept, images: Sequence[Seen]) -> Image.Image:
    """Every image beside itself with what is not learnt tinted; below, what is known of it."""
    side = _SIDE_PX if len(images) <= _FEW else _SMALL_SIDE_PX
    cells = [_cell(image, side) for image in images]
    columns = min(len(cells), max(3, round(math.sqrt(len(cells) / 2))))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    width = columns * cells[0].width + (columns + 1) * _GAP_PX
    title = f"{concept.placeholder}: {len(cells)} image{'s' if len(cells) != 1 else ''} of one {concept.class_noun}"
    told = "as training sees them; what is tinted is not learnt"
    warnings = [(warning, _RED, _FONT_PX) for warning in concept.warnings]
    head = _text([(title, "black", 20), (told, _GREY, _FONT_PX), *warnings], max(width - 2 * _GAP_PX, 200))
    heights = [max(cell.height for cell in row) for row in rows]
    width = max(width, head.width + 2 * _GAP_PX)
    page = Image.new("RGB", (width, head.height + sum(heights) + (len(rows) + 2) * _GAP_PX), "white")
    page.paste(head, (_GAP_PX, _GAP_PX))
    top = head.height + 2 * _GAP_PX
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            page.paste(cell, (_GAP_PX + column * (cell.width + _GAP_PX), top))
        top += height + _GAP_PX
    return page


def tinted(seen: Seen) -> Image.Image:
    """The image under its mask: the less a place is learnt, the more it takes the tint."""
    image = seen.image.convert("RGB")
    grey = image.convert("L").convert("RGB")
    veil = Image.blend(grey, Image.new("RGB", image.size, _NOT_LEARNT), 0.5)
    return Image.composite(image, veil, seen.mask.image.convert("L").resize(image.size))


def _cell(seen: Seen, side: int) -> Image.Image:
    width = 2 * side + 4
    learnt = f"{seen.mask.coverage:.0%} learnt, mask {_SOURCES.get(seen.mask.source, seen.mask.source)}"
    lines = [(seen.source, "black", _FONT_PX), (learnt, _GREY, _FONT_PX)]
    lines += [(seen.caption or "no caption", "black" if seen.caption else _GREY, _FONT_PX)]
    lines += [(note, _RED, _FONT_PX) for note in seen.notes]
    words = _text(lines, width)
    cell = Image.new("RGB", (width, side + 6 + words.height), "white")
    for left, image in ((0, seen.image), (side + 4, tinted(seen))):
        scale = side / max(image.size)
        smooth = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.BICUBIC
        shown = image.convert("RGB").resize([max(1, round(length * scale)) for length in image.size], smooth)
        cell.paste(shown, (left + (side - shown.width) // 2, (side - shown.height) // 2))
    cell.paste(words, (0, side + 6))
    return cell


_SOURCES = {"alpha": "from the alpha channel", "clipseg": "by CLIPSeg", "attention": "by the base's attention"}


def _text(lines: Sequence[tuple[str, str, int]], width: int) -> Image.Image:
    """Lines of (words, colour, size in pixels), broken where they are wider than `width`."""
    broken = []
    for words, colour, size in lines:
        font = ImageFont.load_default(size=size)
        fit = max(8, int(width / max(font.getlength(words) / max(len(words), 1), 1)))
        broken += [(part, colour, font, size) for part in textwrap.wrap(words, fit, max_lines=3, placeholder=" …")]
    height = sum(round(size * 1.35) for *_, size in broken)
    image = Image.new("RGB", (width, max(height, 1)), "white")
    draw, top = ImageDraw.Draw(image), 0
    for part, colour, font, size in broken:
        draw.text((0, top), part, colour, font)
        top += round(size * 1.35)
    return image


# --- the folder ---


def write_folder(concept: Concept, folder: Path) -> None:
    """A folder that `load_concept` reads back to the same images, masks, captions, class noun and name.

    Images are `01.png` ..., captions `01.txt` ..., masks `masks/01.png` ..., the rest is in `concept.json`.

    Raises:
        UserError: the folder holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already. Give a new folder, or remove it first.")
    check_writable(folder / ABOUT)
    digits = max(2, len(str(len(concept.images))))
    for number, (image, mask, caption) in enumerate(
        zip(concept.images, concept.masks, concept.captions, strict=True), start=1
    ):
        stem = f"{number:0{digits}d}"
        save_png(image, folder / f"{stem}.png")
        if mask is not None:
            save_png(mask, folder / "masks" / f"{stem}.png")
        if caption is not None:
            _write(folder / f"{stem}.txt", caption)
    about = {"name": concept.name, "class_noun": concept.class_noun}
    _write(folder / ABOUT, json.dumps(about, ensure_ascii=False, indent=1))


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write_text(text + "\n", encoding="utf-8")
