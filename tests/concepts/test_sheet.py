"""What is shown of a concept is what training sees, and a tidy folder reads back to the same concept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infusion.base.latents import encode_images
from infusion.concepts.concept import Concept, load_concept
from infusion.concepts.masks import SubjectMask, subject_masks
from infusion.concepts.sheet import Seen, seen, sheet, tinted, write_folder
from infusion.errors import UserError
from infusion.training.dataset import training_set


@pytest.fixture
def varied(concept: Concept) -> Concept:
    """Two shapes; a mask, an alpha channel, none; a caption with odd letters, one with too many lines, none."""
    rng = np.random.default_rng(0)
    images = tuple(Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((40, 90), (64, 64), (8, 8)))
    half = Image.new("L", (90, 40))
    half.paste(255, (0, 0, 45, 40))
    soft = Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8))
    return replace(
        concept,
        name="Mia_2",
        class_noun="Kätzchen",
        images=images,
        masks=(half, soft, None),
        mask_sources=("given", "alpha", None),
        captions=("ein Kätzchen – 猫", None, "a dog"),
        sources=("10.jpg", "9.png", "sub/9.png"),
    )


def test_a_tidy_folder_reads_back_to_the_same_concept(varied: Concept, tmp_path: Path) -> None:
    write_folder(varied, tmp_path / "tidy")
    again = load_concept(tmp_path / "tidy")
    assert (again.name, again.class_noun, again.captions) == ("Mia_2", "Kätzchen", varied.captions)
    assert again.sources == ("01.png", "02.png", "03.png")
    assert again.mask_sources == ("given", "given", None)
    for one, other in zip((*varied.images, *varied.masks), (*again.images, *again.masks), strict=True):
        assert (one and (one.mode, one.size, one.tobytes())) == (other and (other.mode, other.size, other.tobytes()))
    files = {str(path.relative_to(tmp_path / "tidy")) for path in (tmp_path / "tidy").rglob("*.*")}
    assert files == {"01.png", "01.txt", "02.png", "03.png", "03.txt", "masks/01.png", "masks/02.png", "concept.json"}


def test_many_pictures_stay_in_their_order(concept: Concept, tmp_path: Path) -> None:
    many = {name: getattr(concept, name)[:1] * 101 for name in ("images", "masks", "captions", "mask_sources")}
    write_folder(replace(concept, sources=tuple(map(str, range(101))), **many), tmp_path / "tidy")
    assert sorted(path.name for path in (tmp_path / "tidy").glob("*.png"))[-1] == "101.png"
    assert load_concept(tmp_path / "tidy").sources[9:11] == ("010.png", "011.png")


def test_nothing_is_overwritten(concept: Concept, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    for there in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="is there already"):
            write_folder(concept, there)
    (tmp_path / "empty").mkdir()
    write_folder(concept, tmp_path / "empty")


@pytest.mark.parametrize("crop", ["square", "buckets"])
def test_what_is_seen_is_what_is_trained_on(base, varied: Concept, crop: str) -> None:
    fine = replace(varied, captions=("a Kätzchen", None, None), sources=("a", "b", "c"))
    pictures = seen(base, fine, crop)
    assert pictures[0].image.size == ((16, 16) if crop == "square" else (24, 8))
    assert pictures[0].caption == "a <Mia_2>" and pictures[1].caption is None
    data = training_set(base, fine, subject_masks(base, fine, crop), False, crop=crop)
    latents = [
        latent for one in getattr(data, "sets", [data]) for latent in one.latents[torch.arange(len(one.latents))]
    ]
    again = [encode_images(base, [picture.image]).float()[0] for picture in pictures]
    assert all(torch.equal(one, other) for one, other in zip(latents, again, strict=True))
    assert [picture.mask.source for picture in pictures] == ["given", "alpha", "attention"]


def test_what_a_person_should_know(base, varied: Concept) -> None:
    images = (*varied.images[:2], varied.images[1])
    white = Image.new("L", (64, 64), 255)
    told = seen(base, replace(varied, images=images, masks=(varied.masks[0], white, Image.new("L", (64, 64), 2))))
    assert told[0].notes == ("56% of the subject is cut off",)
    assert told[1].notes == ("the mask marks nearly all: the background is learnt too",)
    assert told[2].notes == (
        "the mask marks next to nothing",
        "the same image as 9.png",
        'the caption names neither <Mia_2> nor "Kätzchen"',
    )
    assert seen(base, varied)[2].notes[0] == "only 8 x 8 px: is enlarged"
    assert seen(base, varied, "buckets")[0].notes == ("25% of the subject is cut off",)


def test_what_is_not_learnt_is_tinted() -> None:
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    shown = tinted(Seen("1.png", Image.new("RGB", (16, 16), (0, 200, 0)), SubjectMask(mask, "given"), None, ()))
    assert shown.getpixel((2, 2)) == (0, 200, 0)
    pixel = shown.getpixel((13, 2))
    assert isinstance(pixel, tuple)
    red, green, blue = pixel
    assert red > 150 and blue > 100 and green < 100


def test_the_sheet_shows_every_picture_with_its_words(base, varied: Concept) -> None:
    pictures = seen(base, varied)
    few, plain = sheet(varied, pictures), [replace(picture, notes=(), caption=None) for picture in pictures]
    assert few.mode == "RGB"
    assert sheet(varied, plain).height < few.height  # words take room
    assert sheet(replace(varied, warnings=("look out",)), pictures).height > few.height
    inked = np.asarray(few).min(axis=2) < 250
    assert inked[:, : few.width // 3].any() and inked[:, -few.width // 3 :].any()
    many = sheet(varied, pictures * 100)
    assert many.width < 4000 and many.height < 8000
    assert sheet(varied, pictures[:1]).width < few.width
