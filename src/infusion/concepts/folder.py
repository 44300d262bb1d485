"""A folder as people have it -> which of its files are images, with the mask and the caption of each."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infusion.concepts.metadata import Row, read_metadata
from infusion.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# Images to the person who put them there, but not to Pillow everywhere: named, so that nobody misses them.
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw")
ABOUT = "concept.json"

_KOHYA_FOLDER = re.compile(r"\d+_\s*(\S+)(?:\s+(\S.*))?")


@dataclass(frozen=True)
class ImageFile:
    """An image and what goes with it. source: its path within the folder, as messages name it."""

    path: Path
    source: str
    caption: str | None
    mask_path: Path | None


@dataclass(frozen=True)
class ConceptFolder:
    """What a folder holds.

    name, class_noun: as `concept.json` or kohya's folder name have them, unchecked; None where neither says.
    title: the folder's name, from which a concept's can be made. masks_dir: where masks were looked for, if there is
    such a folder. notes: sentences for the person.
    """

    title: str
    name: str | None
    class_noun: str | None
    images: tuple[ImageFile, ...]
    masks_dir: Path | None
    notes: tuple[str, ...]


def survey(given: Path, masks_dir: Path | None = None) -> ConceptFolder:
    """Read a folder's names and small files, and open no image.

    Raises:
        UserError: there are no images, or a file that describes them is broken or names what it may not.
    """
    folder = _images_dir(given)
    rows = read_metadata(folder)
    masks = {row.path: folder / row.mask_path for row in rows if row.mask_path is not None}
    listed = [folder / row.path for row in rows if _is_image(row.path) and _there(folder, row)]
    paths = sorted(
        {*_images(folder), *listed} - set(masks.values()), key=lambda path: natural_key(str(path.relative_to(folder)))
    )
    notes = [
        f"{path.name} is skipped: {path.suffix[1:].upper()} is not read. Save it as JPEG or PNG."
        for path in _files(folder)
        if path.suffix.lower() in UNREAD_SUFFIXES
    ]
    notes += [f"{row.path} is named in the metadata, but is not there." for row in rows if not _there(folder, row)]
    counts = Counter(row.path for row in rows)
    notes += [f"{path} has several rows in the metadata; the last is used." for path, num in counts.items() if num > 1]
    if not paths:
        raise UserError(f"Every image in {folder} is named as a mask in its metadata. Mend or remove that file.")
    captions = _captions(folder, rows, paths, notes)
    mask_paths = _mask_paths(folder, paths, masks_dir)
    if masks_dir is None:
        mask_paths |= {folder / path: mask for path, mask in masks.items()}
    searched = masks_dir or folder / "masks"
    name, class_noun = _about(folder)
    title = folder.resolve().name
    kohya = _KOHYA_FOLDER.fullmatch(title)
    return ConceptFolder(
        title=kohya[1] if kohya else title,
        name=name,
        class_noun=class_noun or (kohya[2] if kohya else None),
        images=tuple(
            ImageFile(path, path.relative_to(folder).as_posix(), captions.get(path), mask_paths.get(path))
            for path in paths
        ),
        masks_dir=searched if searched.is_dir() else None,
        notes=tuple(notes),
    )


def concept_folders(given: Path) -> list[Path]:
    """The sub-folders of a folder that has no images of its own and at least two sub-folders with some: each is a
    concept's. None where it is one concept's folder, as `survey` reads it, or no folder at all.

    Raises:
        UserError: a file that describes images is broken.
    """
    if not os.path.isdir(given) or _has_images(given):
        return []
    subs = _sub_folders(given)
    if kohya := _kohya_folders(given):
        return kohya if len(kohya) > 1 else []
    with_images = [sub for sub in subs if _has_images(sub) or len(_kohya_folders(sub)) == 1]
    return subs if len(with_images) > 1 else []


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts "2.png" before "10.png"."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


# --- which folder ---


def _images_dir(folder: Path) -> Path:
    """`folder`, or its one sub-folder of kohya's `10_token class` kind (also below `img/`)."""
    if not os.path.exists(folder):  # unlike Path's, without complaint about names no file can have
        raise UserError(f"There is no folder {folder}. Give the folder that holds the images.")
    if not folder.is_dir():
        split = f" `infusion prepare {folder} -o DIR` makes a folder of each concept it lists."
        hint = split if folder.suffix.lower() == ".json" else ""
        raise UserError(f"{folder} is a file. Give the folder that holds the images.{hint}")
    if _has_images(folder):
        return folder
    subs = _sub_folders(folder)
    kohya = _kohya_folders(folder)
    if len(kohya) == 1:
        return kohya[0]
    if kohya:
        raise UserError(
            f"{folder} holds several concepts: {_named(kohya)}. Give one of these folders; `infusion train` also takes "
            "them all."
        )
    allowed = "jpg, png, webp, bmp, tiff or gif"
    if with_images := [sub for sub in subs if _images(sub)]:
        raise UserError(
            f"{folder} has no images ({allowed}) of its own, but these have: {_named(with_images)}. Give one of them."
        )
    others = _files(folder)
    found = f" It has other files: {_named(others)}." if others else " It is empty." if not subs else ""
    raise UserError(f"{folder} has no images ({allowed}).{found}")


def _has_images(folder: Path) -> bool:
    """Of its own, or named in its metadata."""
    return bool(_images(folder)) or any(_there(folder, row) for row in read_metadata(folder))


def _kohya_folders(folder: Path) -> list[Path]:
    """Its sub-folders of kohya's `10_token class` kind, also below `img/`."""
    below_img = _sub_folders(folder / "img") if (folder / "img").is_dir() else []
    return [sub for sub in _sub_folders(folder) + below_img if _KOHYA_FOLDER.fullmatch(sub.name) and _images(sub)]


def _files(folder: Path) -> list[Path]:
    """Its files in natural order, without hidden ones (macOS leaves `._name.jpg` beside an image)."""
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    except OSError as error:
        raise UserError(f"Cannot read {folder}: {error.strerror}.") from error
    return sorted(entries, key=lambda path: natural_key(path.name))


def _there(folder: Path, row: Row) -> bool:
    return os.path.isfile(folder / row.path)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.stem.lower().endswith("-masklabel")


def _images(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if _is_image(path)]


def _sub_folders(folder: Path) -> list[Path]:
    entries = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted((path for path in entries if path.name != "masks"), key=lambda path: natural_key(path.name))


def _named(paths: list[Path]) -> str:
    shown = ", ".join(path.name for path in paths[:5])
    return shown + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


# --- what is said of the concept and its images ---


def _about(folder: Path) -> tuple[str | None, str | None]:
    """Name and class noun as `infusion prepare` wrote them."""
    path = folder / ABOUT
    if not path.is_file():
        return None, None
    try:
        about = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        about = None
    if isinstance(about, dict):
        name, class_noun = about.get("name"), about.get("class_noun")
        if isinstance(name, str | None) and isinstance(class_noun, str | None):
            return name, class_noun
    raise UserError(
        f'{path} is not a JSON object with texts for "name" and "class_noun", such as '
        '{"name": "my-cat", "class_noun": "cat"}. Mend or remove it.'
    )


def _captions(folder: Path, rows: list[Row], paths: list[Path], notes: list[str]) -> dict[Path, str]:
    """A text file beside the image, else its row in the metadata."""
    texts = {folder / row.path: row.caption for row in rows}
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


def _mask_paths(folder: Path, images: list[Path], masks_dir: Path | None) -> dict[Path, Path]:
    """The mask file of each image that has one: in the folder of masks, below the sub-folder the image is in, else
    beside it."""
    where = masks_dir or folder / "masks"
    if masks_dir is not None and not where.is_dir():
        raise UserError(f"{where} is not a folder. Give the folder that holds the masks.")
    found: dict[Path, Path] = {}
    for parent in dict.fromkeys(path.parent for path in images):
        below = where / parent.relative_to(folder)
        by_stem = _by_stem(_files(parent), only="-masklabel") if masks_dir is None else {}
        by_stem |= _by_stem(_files(below)) if below.is_dir() else {}
        found |= {path: by_stem[path.stem] for path in images if path.parent == parent and path.stem in by_stem}
    if masks_dir is not None and not found:
        raise UserError(
            f"No mask in {where} has the name of an image in {folder}. "
            f"The mask of {images[0].name} must be called {images[0].stem}.png."
        )
    return found


def _by_stem(files: Iterable[Path], only: str = "") -> dict[str, Path]:
    """Images by stem, with or without `-masklabel` at its end."""
    return {
        path.stem.removesuffix("-masklabel"): path
        for path in files
        if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.endswith(only)
    }
