"""Image files -> upright RGB images of a sensible size, and masks that fit them."""

import math
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from infusion.errors import UserError

MAX_SHORT_SIDE_PX = 1024  # what is larger is reduced: no base is trained on larger squares


class Unreadable(Exception):
    """Why one image among others cannot be used."""


def read_image(path: Path, source: str, notes: list[str]) -> tuple[Image.Image, Image.Image | None, tuple[int, int]]:
    """The image, its alpha channel (unless it is opaque), and the size it has in the file, upright.

    source: what notes call it.
    """
    image, full_size = _opened(path, source, notes)
    image = _reduced(image)
    width, height = full_size
    if max(width, height) > 4 * min(width, height):
        notes.append(f"{source} is {width} x {height} px, an extreme shape, of which only the middle is learnt.")
    elif min(width, height) < 32:
        notes.append(f"{source} is very small ({width} x {height} px).")
    if image.mode == "RGB":
        return image, None, full_size
    alpha = image.getchannel("A")
    levels = np.asarray(alpha)
    if not levels.any():
        raise UserError(
            f"{path} is wholly transparent: there is nothing in it to learn. Remove it or its alpha channel."
        )
    # Colours under transparency are arbitrary (cut-out tools leave black): show it as viewers do, on white.
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return flat, (None if levels.min() == 255 else alpha), full_size


def _opened(path: Path, source: str, notes: list[str]) -> tuple[Image.Image, tuple[int, int]]:
    """The first frame, upright, as RGB or RGBA, and its size in the file; a large JPEG is decoded smaller."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images: these are reduced below
            with Image.open(path) as image:
                # Phones' MPO files are JPEGs with a preview as their second frame.
                num_frames = getattr(image, "n_frames", 1)
                if num_frames > 1 and image.format != "MPO":
                    notes.append(f"{source} has {num_frames} frames; only the first is used.")
                    image.seek(0)
                width, height = image.size
                shrink = _shrink((width, height))
                if shrink < 1:
                    image.draft(None, (math.ceil(width * shrink), math.ceil(height * shrink)))
                image.load()
                upright, turned = _upright(image)
                return _plain(upright), (height, width) if turned else (width, height)
    except Image.DecompressionBombError:
        raise Unreadable(
            f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels; reduce it first"
        ) from None
    except MemoryError:
        raise Unreadable("there is not enough memory to read it; reduce it first") from None
    except Exception as error:  # a broken file can make Pillow's readers raise nearly anything
        if isinstance(error, OSError) and error.strerror:
            raise Unreadable(f"it cannot be read ({error.strerror})") from error
        raise Unreadable("it is damaged, cut short, or no image") from error


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """As its EXIF tag wants it, and whether that swaps width and height; damaged EXIF says nothing."""
    try:
        return ImageOps.exif_transpose(image), image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception:
        return image, False


def _plain(image: Image.Image) -> Image.Image:
    """RGBA if anything in it is transparent by its format, else RGB."""
    image = _eight_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _shrink(size: tuple[int, int]) -> float:
    """The factor that brings the short side to MAX_SHORT_SIDE_PX at most."""
    return min(1.0, MAX_SHORT_SIDE_PX / min(size))


def _reduced(image: Image.Image) -> Image.Image:
    shrink = _shrink(image.size)
    if shrink == 1:
        return image
    width, height = (round(side * shrink) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float greyscale brought to 0..255; Pillow's own conversion cuts it off at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    peak = float(values.max(initial=0))
    if image.mode.startswith("I;16") or (image.mode == "I" and peak <= 65535):
        white = 65535.0
    else:
        white = next((limit for limit in (1.0, 255.0, 65535.0) if peak <= limit), peak)
    return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))


def read_mask(path: Path, source: str, image: Image.Image, full_size: tuple[int, int]) -> Image.Image:
    """The mask in the size of `image`, which stands for `full_size` pixels in its file."""
    try:
        mask, (width, height) = _opened(path, path.name, [])
    except Unreadable as error:
        raise UserError(f"The mask {path} is of no use: {error}. Replace or remove it.") from error
    if mask.mode == "RGBA":  # what is transparent is not marked
        mask = Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask)
    mask = mask.convert("L")
    if abs(math.log(width / height * full_size[1] / full_size[0])) > 0.02:
        raise UserError(
            f"The mask {path} is {width} x {height} px, but its image {source} is {full_size[0]} x "
            f"{full_size[1]} px upright. Give a mask of the same size or the same shape."
        )
    if np.asarray(mask).max() == 1:  # a mask of zeros and ones
        mask = mask.point(lambda value: 255 * value)
    if is_black(mask):
        raise UserError(
            f"The mask {path} is all black, so there is nothing to learn in {source}. "
            "White marks what is to be learnt; mend or remove the mask."
        )
    return mask.resize(image.size, Image.Resampling.BILINEAR)


def is_black(mask: Image.Image) -> bool:
    """Apart from the noise of JPEG."""
    return bool(np.asarray(mask).max() < 8)
