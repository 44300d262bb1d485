"""A folder of images -> Concept: pictures, masks, captions, class noun, placeholder."""

import json
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from infusion.errors import UserError, all_at_once

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# Pictures to the person who put them there, but not to Pillow everywhere: named, so that nobody misses them.
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw")
MAX_PICTURES = 1000
MAX_SHORT_SIDE_PX = 1024  # what is larger is reduced: training takes a square of at most this
MAX_NAME_LENGTH = 64

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = re.compile(
    r"s|pad|unk|bos|eos|cls|sep|mask|image|(start|end)[-_]?of[-_]?(text|turn)|extra_id_?\d+|(unused|reserved)[-_]?\d*",
    re.IGNORECASE,
)
_KOHYA_FOLDER = re.compile(r"\d+_(.+)")


@dataclass(frozen=True)
class Concept:
    """One thing to learn, from its pictures.

    `images`, `masks`, `captions`, `sources` and `mask_sources` have one entry per picture. Images are RGB and
    upright. Masks have the size of their picture, mode L, white means: learn; None where there is none.
    `mask_sources` say "given" (a file), "alpha" (the picture's own alpha channel) or None. `sources` are file
    names without their folder. `warnings` are sentences for the person.
    """

    name: str
    class_noun: str
    images: tuple[Image.Image, ...]
    masks: tuple[Image.Image | None, ...]
    captions: tuple[str | None, ...]
    sources: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    mask_sources: tuple[str | None, ...] = ()

    @property
    def placeholder(self) -> str:
        """How the concept is written in a prompt: `<my-cat>`."""
        return f"<{self.name}>"


def load_concept(
    folder: str | os.PathLike[str],
    class_noun: str,
    name: str | None = None,
    masks_dir: str | os.PathLike[str] | None = None,
) -> Concept:
    """Read the pictures of one thing, in natural order, with the captions and masks that go with them.

    Args:
        folder: holds the pictures, or is a kohya folder whose one sub-folder `10_token class/` does.
        class_noun: what kind of thing it is, in a word or two the base model knows: "cat".
        name: what it is called in prompts; the folder's name when not given.
        masks_dir: holds masks with the file stems of the pictures. Without it: a `masks/` folder among the
            pictures, else `stem-masklabel.png` beside each, else its alpha channel, else None.

    Raises:
        UserError: no picture can be read, a mask does not fit, the noun or the name cannot be used.
    """
    class_noun = checked_class_noun(class_noun)
    pictures_dir = _pictures_dir(Path(folder))
    name = checked_name(name) if name is not None else _name_from(pictures_dir)
    paths = _pictures(pictures_dir)
    if len(paths) > MAX_PICTURES:
        raise UserError(
            f"{folder} has {len(paths)} pictures; at most {MAX_PICTURES} are read. "
            "Choose the best ones: 3 to 20 are plenty."
        )
    mask_paths = _mask_paths(pictures_dir, paths, masks_dir)
    masked_dir = masks_dir if masks_dir is not None else pictures_dir / "masks"
    notes = [
        f"{path.name} is skipped: {path.suffix[1:].upper()} is not read. Save it as JPEG or PNG."
        for path in _files(pictures_dir)
        if path.suffix.lower() in UNREAD_SUFFIXES
    ]
    captions = _captions(pictures_dir, paths, notes)
    read: list[tuple[Image.Image, Image.Image | None, str | None, str, str | None]] = []
    mistakes: list[str] = []
    for path in paths:
        try:
            image, alpha, full_size = _picture(path, notes)
            mask_path = mask_paths.get(path)
            mask = alpha if mask_path is None else _mask(mask_path, path, image, full_size)
        except _Unreadable as error:
            notes.append(f"{path.name} is skipped: {error}.")
            continue
        except UserError as error:
            mistakes.append(str(error))
            continue
        if mask_path is None and Path(masked_dir).is_dir():
            notes.append(f"{path.name} has no mask in {masked_dir}.")
        if mask is not None and _is_black(ImageOps.fit(mask, (64, 64))):
            notes.append(f"The mask of {path.name} marks nothing in its middle square, which is what is learnt.")
        mask_source = "given" if mask_path is not None else "alpha" if mask is not None else None
        read.append((image, mask, captions.get(path), path.name, mask_source))
    if mistakes:
        raise all_at_once(mistakes, "the pictures")
    if not read:
        raise UserError(f"No picture in {folder} can be read: " + " ".join(notes))
    images, masks, texts, sources, mask_sources = zip(*read, strict=True)
    return Concept(name, class_noun, images, masks, texts, sources, tuple(notes), mask_sources)


def checked_class_noun(class_noun: str) -> str:
    """The noun with single spaces; UserError if it has no letter or has angle brackets."""
    noun = unicodedata.normalize("NFC", " ".join(class_noun.split()))
    if "<" in noun or ">" in noun:
        raise UserError(
            f'The class noun "{noun}" has angle brackets; they mark concepts in prompts. '
            'Give the plain word for what kind of thing it is, such as "cat".'
        )
    if not any(character.isalpha() for character in noun):
        raise UserError(
            f'The class noun "{noun}" has no letter. Give the plain word for what kind of thing it is, such as "cat".'
        )
    return noun


def checked_name(name: str) -> str:
    """The name; UserError unless it is letters, digits, - and _ and no special token of text models."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        suggestion = slug(name)[:MAX_NAME_LENGTH]
        hint = f' For example "{suggestion}".' if suggestion else ' For example "my-cat".'
        raise UserError(
            f'"{name}" cannot be the name of a concept: a name is at most {MAX_NAME_LENGTH} letters (a-z), '
            f"digits, - and _, and starts with a letter or digit.{hint}"
        )
    if _RESERVED.fullmatch(name):
        raise UserError(
            f'"{name}" cannot be the name of a concept: <{name}> is a special token of text models. '
            f'Choose another, such as "my-{name}".'
        )
    return name


def slug(text: str) -> str:
    """`text` in lower-case letters, digits, - and _: "Café crème.1" -> "cafe-creme-1". May be empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_]+", "-", plain.lower()).strip("-_")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts "2.png" before "10.png"."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


# --- folders ---


def _files(folder: Path) -> list[Path]:
    """Its files in natural order, without hidden ones (macOS leaves `._name.jpg` beside a picture)."""
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    except OSError as error:
        raise UserError(f"Cannot read {folder}: {error.strerror}.") from error
    return sorted(entries, key=lambda path: natural_key(path.name))


def _pictures(folder: Path) -> list[Path]:
    return [
        path
        for path in _files(folder)
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.stem.lower().endswith("-masklabel")
    ]


def _sub_folders(folder: Path) -> list[Path]:
    entries = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted((path for path in entries if path.name != "masks"), key=lambda path: natural_key(path.name))


def _pictures_dir(folder: Path) -> Path:
    """`folder`, or its one sub-folder of kohya's `10_token class` kind (also below `img/`)."""
    if not folder.exists():
        raise UserError(f"There is no folder {folder}. Give the folder that holds the pictures.")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Give the folder that holds the pictures.")
    if _pictures(folder):
        return folder
    subs = _sub_folders(folder)
    below_img = _sub_folders(folder / "img") if (folder / "img").is_dir() else []
    kohya = [sub for sub in subs + below_img if _KOHYA_FOLDER.fullmatch(sub.name) and _pictures(sub)]
    if len(kohya) == 1:
        return kohya[0]
    if kohya:
        raise UserError(
            f"{folder} holds several concepts: {_named(kohya)}. Each is learnt alone; give one of these folders."
        )
    allowed = "jpg, png, webp, bmp, tiff or gif"
    if with_pictures := [sub for sub in subs if _pictures(sub)]:
        raise UserError(
            f"{folder} has no pictures ({allowed}) of its own, but these have: {_named(with_pictures)}. "
            "Give one of them."
        )
    others = _files(folder)
    found = f" It has other files: {_named(others)}." if others else " It is empty." if not subs else ""
    raise UserError(f"{folder} has no pictures ({allowed}).{found}")


def _named(paths: list[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:5])
    return shown + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _name_from(folder: Path) -> str:
    title = folder.resolve().name
    if kohya := _KOHYA_FOLDER.fullmatch(title):
        title = kohya[1].split()[0]
    name = slug(title)[:MAX_NAME_LENGTH]
    if not name:
        raise UserError(f'The folder\'s name "{title}" gives no name for the concept. Give one: --name my-cat.')
    return checked_name(name)


# --- captions ---


def _captions(folder: Path, paths: list[Path], notes: list[str]) -> dict[Path, str]:
    """A text file beside the picture, else its line in metadata.jsonl."""
    texts = {folder / name: text for name, text in _metadata(folder / "metadata.jsonl").items()}
    for path in paths:
        for beside in (path.with_suffix(".txt"), path.with_suffix(".caption")):
            if beside.is_file():
                try:
                    texts[path] = beside.read_text(encoding="utf-8-sig")
                except (OSError, UnicodeDecodeError):
                    notes.append(f"{beside.name} is skipped: it is not readable UTF-8 text.")
                    continue
                break
    return {path: " ".join(text.split()) for path, text in texts.items() if text.split()}


def _metadata(path: Path) -> dict[str, str]:
    """Captions by file name, from the file of Hugging Face's imagefolder layout."""
    if not path.is_file():
        return {}
    captions = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable UTF-8 text. Mend or remove it.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text = next((entry[key] for key in ("text", "caption", "prompt") if entry.get(key)), "")
            captions[str(entry["file_name"])] = str(text)
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f'Line {number} of {path} is not a JSON object with a "file_name" and a "text". Mend or remove it.'
            ) from error
    return captions


# --- pictures ---


class _Unreadable(Exception):
    """Why one picture among others cannot be used."""


def _picture(path: Path, notes: list[str]) -> tuple[Image.Image, Image.Image | None, tuple[int, int]]:
    """The picture, its alpha channel (unless it is opaque), and the size it has in the file, upright."""
    image, full_size = _opened(path, notes)
    image = _reduced(image)
    width, height = full_size
    if max(width, height) > 4 * min(width, height):
        notes.append(f"{path.name} is {width} x {height} px, an extreme shape; only its middle square is learnt.")
    elif min(width, height) < 32:
        notes.append(f"{path.name} is very small ({width} x {height} px).")
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


def _opened(path: Path, notes: list[str]) -> tuple[Image.Image, tuple[int, int]]:
    """The first frame, upright, as RGB or RGBA, and its size in the file; a large JPEG is decoded smaller."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures: these are reduced below
            with Image.open(path) as image:
                # Phones' MPO files are JPEGs with a preview as their second frame.
                num_frames = getattr(image, "n_frames", 1)
                if num_frames > 1 and image.format != "MPO":
                    notes.append(f"{path.name} has {num_frames} frames; only the first is used.")
                    image.seek(0)
                width, height = image.size
                shrink = _shrink((width, height))
                if shrink < 1:
                    image.draft(None, (math.ceil(width * shrink), math.ceil(height * shrink)))
                image.load()
                upright, turned = _upright(image)
                return _plain(upright), (height, width) if turned else (width, height)
    except Image.DecompressionBombError:
        raise _Unreadable(
            f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels; reduce it first"
        ) from None
    except MemoryError:
        raise _Unreadable("there is not enough memory to read it; reduce it first") from None
    except Exception as error:  # a broken file can make Pillow's readers raise nearly anything
        if isinstance(error, OSError) and error.strerror:
            raise _Unreadable(f"it cannot be read ({error.strerror})") from error
        raise _Unreadable("it is damaged, cut short, or no picture") from error


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


# --- masks ---


def _mask_paths(folder: Path, pictures: list[Path], masks_dir: str | os.PathLike[str] | None) -> dict[Path, Path]:
    """The mask file of each picture that has one."""
    where = Path(masks_dir) if masks_dir is not None else folder / "masks"
    if masks_dir is not None and not where.is_dir():
        raise UserError(f"{where} is not a folder. Give the folder that holds the masks.")
    by_stem = _by_stem(_files(where) if where.is_dir() else [])
    beside = {} if masks_dir is not None else _by_stem(_files(folder), only="-masklabel")
    found = {path: by_stem.get(path.stem) or beside.get(path.stem) for path in pictures}
    if masks_dir is not None and not any(found.values()):
        raise UserError(
            f"No mask in {where} has the name of a picture in {folder}. "
            f"The mask of {pictures[0].name} must be called {pictures[0].stem}.png."
        )
    return {path: mask for path, mask in found.items() if mask is not None}


def _by_stem(files: Iterable[Path], only: str = "") -> dict[str, Path]:
    """Pictures by stem, with or without `-masklabel` at its end."""
    return {
        path.stem.removesuffix("-masklabel"): path
        for path in files
        if path.suffix.lower() in PICTURE_SUFFIXES and path.stem.endswith(only)
    }


def _mask(path: Path, picture: Path, image: Image.Image, full_size: tuple[int, int]) -> Image.Image:
    """The mask in the size of `image`, which stands for `full_size` pixels in its file."""
    try:
        mask, (width, height) = _opened(path, [])
    except _Unreadable as error:
        raise UserError(f"The mask {path} is of no use: {error}. Replace or remove it.") from error
    if mask.mode == "RGBA":  # what is transparent is not marked
        mask = Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask)
    mask = mask.convert("L")
    if abs(math.log(width / height * full_size[1] / full_size[0])) > 0.02:
        raise UserError(
            f"The mask {path} is {width} x {height} px, but its picture {picture.name} is {full_size[0]} x "
            f"{full_size[1]} px upright. Give a mask of the same size or the same shape."
        )
    if np.asarray(mask).max() == 1:  # a mask of zeros and ones
        mask = mask.point(lambda value: 255 * value)
    if _is_black(mask):
        raise UserError(
            f"The mask {path} is all black, so there is nothing to learn in {picture.name}. "
            "White marks what is to be learnt; mend or remove the mask."
        )
    return mask.resize(image.size, Image.Resampling.BILINEAR)


def _is_black(mask: Image.Image) -> bool:
    """Apart from the noise of JPEG."""
    return bool(np.asarray(mask).max() < 8)
