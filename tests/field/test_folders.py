"""Folders of images as people have them: names, masks, captions and kohya's projects that are misread today."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from infusion.concepts.concept import Concept, load_concept
from infusion.concepts.list import listed_concepts
from infusion.errors import UserError

RED, BLUE = (200, 40, 40), (40, 40, 200)


def not_yet(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


def image(path: Path, color: tuple[int, int, int] = RED, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), color).save(path, **options)
    return path


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = Image.new("L", (64, 64))
    drawn.paste(255, (16, 16, 48, 48))
    drawn.save(path)


def read(folder: Path) -> Concept:
    return load_concept(folder, "cat", "my-cat")


# Windows and browsers save JPEGs as .jfif (also .jpe, .ppm, no suffix at all): Sygil-Dev/sygil-webui PR #1590,
# visual-layer/fastdup #312, supervisely PR #839, replicate/dreambooth #43.


@not_yet("an image under another suffix is read, or named with the reason")
@pytest.mark.parametrize(("suffix", "kind"), [(".jfif", "JPEG"), (".jpe", "JPEG"), (".ppm", "PPM"), ("", "JPEG")])
def test_images_under_other_suffixes(tmp_path: Path, suffix: str, kind: str) -> None:
    image(tmp_path / "1.png")
    image(tmp_path / f"2{suffix}", format=kind)
    concept = read(tmp_path)
    assert f"2{suffix}" in concept.sources or any(f"2{suffix}" in warning.split() for warning in concept.warnings)


# Masks beside their images under the names that other tools give them: Nerogar/OneTrainer PR #1718,
# bghira/SimpleTuner #3198 and #2034, invoke-ai/invoke-training PR #129, Particle1904/DatasetHelpers #10.


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=not_yet("a mask is no image to learn"))
            for name in ("1_mask.png", "1-mask.png", "1.mask.png", "mask_1.png", "1-masklabel1.png", "1_masklabel.png")
        ),
        pytest.param("1-condlabel.png", marks=not_yet("a label of conditions is no image to learn")),
        "1-masklabel.png",
    ],
)
def test_masks_beside_their_images_are_not_learnt(tmp_path: Path, name: str) -> None:
    image(tmp_path / "1.png")
    mask(tmp_path / name)
    assert name not in read(tmp_path).sources


@not_yet("masks in a folder mask/ are used, or named")
def test_masks_in_a_folder_of_one(tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    mask(tmp_path / "mask" / "1.png")
    concept = read(tmp_path)
    assert concept.masks[0] is not None or "mask" in " ".join(concept.warnings)


# Several captions an image, and pandas' NaN for a missing one: Nerogar/OneTrainer #182, shootthesound/Fizgig #148,
# diffusers' train_text_to_image, whose text may be a list.


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        pytest.param('["a cat on a sofa", "one cat"]', ("a cat on a sofa", "one cat", None), id="a list"),
        pytest.param("NaN", (None,), id="NaN"),
        pytest.param('{"en": "a cat"}', ("a cat", None), id="an object"),
    ],
)
@not_yet("a caption that is no text is read as one of its texts, left out, or refused")
def test_captions_that_are_no_text(tmp_path: Path, text: str, allowed: tuple[str | None, ...]) -> None:
    image(tmp_path / "1.png")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "1.png", "text": {text}}}\n')
    with contextlib.suppress(UserError):
        assert read(tmp_path).captions[0] in allowed


# kohya's projects hold the class's regularization images too: bmaltais/kohya_ss #547, #1849, #3322, #613,
# Linaqruf/kohya-trainer #50.


@not_yet("regularization images are no subject")
@pytest.mark.parametrize(
    ("subject", "regularization"),
    [("image/10_sks cat", "reg/1_cat"), ("10_sks cat", "1_cat"), ("train_data/10_sks cat", "reg_data/1_cat")],
)
def test_regularization_images_are_no_subject(tmp_path: Path, subject: str, regularization: str) -> None:
    image(tmp_path / subject / "1.png")
    image(tmp_path / regularization / "1.png", BLUE)
    try:
        assert "cat" not in [one.name for one in listed_concepts(tmp_path, "cat")]
    except UserError as error:
        assert "'cat'" not in str(error)


# A calibrated monitor's colour profile, a workflow's text, HEIC under another suffix: Comfy-Org/ComfyUI PR #3316,
# replicate/dreambooth #43 and #23.


@not_yet("Pillow's limit on colour profiles is no damage")
def test_a_large_colour_profile(tmp_path: Path) -> None:
    image(tmp_path / "0.png")
    noise = np.random.default_rng(0).integers(0, 256, 3 << 19, np.uint8).tobytes()
    image(tmp_path / "1.png", icc_profile=bytes(128) + noise)
    assert "1.png" in read(tmp_path).sources


@not_yet("Pillow's limit on texts is no damage")
def test_a_large_text(tmp_path: Path) -> None:
    image(tmp_path / "0.png")
    about = PngInfo()
    about.add_text("workflow", "x" * (3 << 20), zip=True)
    image(tmp_path / "1.png", pnginfo=about)
    assert "1.png" in read(tmp_path).sources


@not_yet("the reason names what the file is")
def test_heic_under_another_suffix(tmp_path: Path) -> None:
    image(tmp_path / "0.png")
    (tmp_path / "1.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    assert "HEIC" in " ".join(read(tmp_path).warnings)
