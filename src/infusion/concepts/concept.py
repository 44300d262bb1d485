"""A folder of images -> Concept: images, masks, captions, class noun, placeholder."""

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from infusion.concepts.folder import ConceptFolder, survey
from infusion.concepts.image_files import Unreadable, is_black, read_image, read_mask
from infusion.errors import UserError, all_at_once

MAX_IMAGES = 1000
MAX_NAME_LENGTH = 64

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = re.compile(
    r"s|pad|unk|bos|eos|cls|sep|mask|image|(start|end)[-_]?of[-_]?(text|turn)|extra_id_?\d+|(unused|reserved)[-_]?\d*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Concept:
    """One thing to learn, from its images.

    `images`, `masks`, `captions`, `sources` and `mask_sources` have one entry per image. Images are RGB and
    upright. Masks have the size of their image, mode L, white means: learn; None where there is none.
    `mask_sources` say "given" (a file), "alpha" (the image's own alpha channel) or None. `sources` are the
    images' paths within their folder. `warnings` are sentences for the person.
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
    class_noun: str | None = None,
    name: str | None = None,
    masks_dir: str | os.PathLike[str] | None = None,
) -> Concept:
    """Read the images of one thing, in natural order, with the captions and masks that go with them.

    Args:
        folder: holds the images, or names them in a `metadata.jsonl` or `metadata.csv`, or is a kohya folder whose
            one sub-folder `10_token class/` holds them.
        class_noun: what kind of thing it is, in a word or two the base model knows: "cat". Where it is not given,
            the folder's `concept.json` or kohya's folder name has to tell.
        name: what it is called in prompts; where it is not given, what `concept.json` says, or the folder's name.
        masks_dir: holds masks with the file stems of the images. Without it: the masks that the metadata name, else
            a `masks/` folder among the images, else `stem-masklabel.png` beside each, else its alpha channel, else
            None.

    Raises:
        UserError: no image can be read, a mask does not fit, the noun or the name cannot be used.
    """
    if class_noun is not None:
        class_noun = checked_class_noun(class_noun)
    found = survey(Path(folder), Path(masks_dir) if masks_dir is not None else None)
    if len(found.images) > MAX_IMAGES:
        raise UserError(
            f"{folder} has {len(found.images)} images; at most {MAX_IMAGES} are read. "
            "Choose the best ones: 3 to 20 are plenty."
        )
    class_noun = class_noun or _class_noun_of(found, folder)
    name = checked_name(name) if name is not None else _name_of(found)
    notes = list(found.notes)
    read: list[tuple[Image.Image, Image.Image | None, str | None, str, str | None]] = []
    mistakes: list[str] = []
    for file in found.images:
        try:
            image, alpha, full_size = read_image(file.path, file.source, notes)
            given = file.mask_path
            mask = alpha if given is None else read_mask(given, file.source, image, full_size)
        except Unreadable as error:
            notes.append(f"{file.source} is skipped: {error}.")
            continue
        except UserError as error:
            mistakes.append(str(error))
            continue
        if given is None and found.masks_dir is not None:
            notes.append(f"{file.source} has no mask in {found.masks_dir}.")
        if mask is not None and is_black(ImageOps.fit(mask, (64, 64))):
            notes.append(f"The mask of {file.source} marks nothing in its middle square: see --crop.")
        mask_source = "given" if given is not None else "alpha" if mask is not None else None
        read.append((image, mask, file.caption, file.source, mask_source))
    if mistakes:
        raise all_at_once(mistakes, "the images")
    if not read:
        raise UserError(f"No image in {folder} can be read: " + " ".join(notes))
    images, masks, texts, sources, mask_sources = zip(*read, strict=True)
    return Concept(name, class_noun, images, masks, texts, sources, tuple(notes), mask_sources)


def _class_noun_of(found: ConceptFolder, folder: str | os.PathLike[str]) -> str:
    if found.class_noun is None:
        raise UserError(
            f"Nothing says what kind of thing the images in {folder} show. "
            "Give its class noun, a word or two that the base model knows: --class-noun cat."
        )
    return checked_class_noun(found.class_noun)


def _name_of(found: ConceptFolder) -> str:
    if found.name is not None:
        return checked_name(found.name)
    name = slug(found.title)[:MAX_NAME_LENGTH]
    if not name:
        raise UserError(f'The folder\'s name "{found.title}" gives no name for the concept. Give one: --name my-cat.')
    return checked_name(name)


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
