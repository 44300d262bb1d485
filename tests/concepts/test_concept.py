"""Folders of images as people have them, good and bad."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infusion.concepts.concept import Concept, load_concept, slug
from infusion.errors import UserError


def picture(path: Path, size: tuple[int, int] = (80, 60), mode: str = "RGB", color: Any = None, **save: Any) -> Path:
    """Left half `color` (green), right half what the mode's zero is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size)
    image.paste((0, 200, 0) if color is None else color, (0, 0, size[0] // 2, size[1]))
    image.save(path, **save)
    return path


def half_mask(path: Path, size: tuple[int, int] = (80, 60), white: int = 255) -> Path:
    return picture(path, size, "L", white)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1.png", "2.png", "10.png"):
        picture(tmp_path / "My Cat" / name)
    return tmp_path / "My Cat"


def refused(folder: Path, words: str, class_noun: str = "cat", **given: Any) -> None:
    with pytest.raises(UserError) as caught:
        load_concept(folder, class_noun, **given)
    assert words in str(caught.value)


def test_a_plain_folder(folder: Path) -> None:
    (folder / "._1.png").write_bytes(b"left by macOS")
    (folder / "notes.md").write_text("not an image")
    concept = load_concept(folder, " tabby   cat ")
    assert isinstance(concept, Concept)
    assert (concept.name, concept.class_noun, concept.placeholder) == ("my-cat", "tabby cat", "<my-cat>")
    assert concept.sources == ("1.png", "2.png", "10.png")
    assert concept.masks == concept.captions == concept.mask_sources == (None, None, None)
    assert concept.warnings == ()
    assert all(image.mode == "RGB" and image.size == (80, 60) for image in concept.images)
    assert concept.images[0].getpixel((5, 5)) == (0, 200, 0)


# --- names ---


@pytest.mark.parametrize("name", ["my-cat", "Cat_2", "x"])
def test_names_that_can_be_used(folder: Path, name: str) -> None:
    assert load_concept(folder, "cat", name=name).name == name


@pytest.mark.parametrize("name", ["", "my cat", "<my-cat>", "-cat", "cät", "a|b", "x" * 65, "a\n"])
def test_names_that_cannot(folder: Path, name: str) -> None:
    refused(folder, "cannot be the name of a concept: a name is at most 64 letters", name=name)


@pytest.mark.parametrize("name", ["endoftext", "StartOfText", "pad", "s", "unk", "mask", "extra_id_7", "end_of_turn"])
def test_names_of_special_tokens(folder: Path, name: str) -> None:
    refused(folder, "special token", name=name)


@pytest.mark.parametrize("noun", ["", "  ", "<cat>", "cat>", "!?", "7"])
def test_class_nouns_that_cannot_be_used(folder: Path, noun: str) -> None:
    refused(folder, "class noun", class_noun=noun)


def test_a_folder_whose_name_gives_no_name(tmp_path: Path) -> None:
    picture(tmp_path / "猫" / "1.png")
    refused(tmp_path / "猫", "--name")
    assert load_concept(tmp_path / "猫", "猫", name="mao").class_noun == "猫"


def test_slug() -> None:
    assert slug("  Café crème.1!") == "cafe-creme-1"
    assert slug("a <my-cat> on the beach") == "a-my-cat-on-the-beach"


# --- folders ---


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "There is no folder")
    refused(picture(tmp_path / "one.png"), "is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "It is empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    refused(tmp_path / "texts", "It has other files: a.txt")
    picture(tmp_path / "above" / "cats" / "1.png")
    refused(tmp_path / "above", "but these have: cats")


def test_too_many_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infusion.concepts.concept.MAX_IMAGES", 2)
    refused(folder, "has 3 images; at most 2")


@pytest.mark.parametrize("inside", ["10_my-cat cat", "img/10_my-cat cat"])
def test_kohya_folders(tmp_path: Path, inside: str) -> None:
    picture(tmp_path / inside / "1.png")
    for given in (tmp_path, tmp_path / inside):
        concept = load_concept(given, "cat")
        assert concept.name == "my-cat" and concept.sources == ("1.png",)
    picture(tmp_path / Path(inside).parent / "5_my-dog dog" / "1.png")
    refused(tmp_path, "several concepts: 5_my-dog dog, 10_my-cat cat")


def test_kohyas_folder_name_has_the_class_noun(tmp_path: Path) -> None:
    picture(tmp_path / "img" / "10_SKS  tabby cat" / "1.png")
    concept = load_concept(tmp_path)
    assert (concept.name, concept.class_noun) == ("sks", "tabby cat")
    assert load_concept(tmp_path, "dog", "x").class_noun == "dog"


@pytest.mark.parametrize("name", ["my_cat", "10_cat"])
def test_a_class_noun_that_nobody_gives(tmp_path: Path, name: str) -> None:
    picture(tmp_path / name / "1.png")
    with pytest.raises(UserError, match=r"Nothing says what kind of thing .* --class-noun cat"):
        load_concept(tmp_path / name)


def test_what_a_folder_says_of_its_concept(folder: Path) -> None:
    (folder / "concept.json").write_text('{"name": "Mia", "class_noun": "tabby  cat"}')
    assert load_concept(folder).name == "Mia" and load_concept(folder).class_noun == "tabby cat"
    given = load_concept(folder, "cat", name="x")
    assert (given.name, given.class_noun) == ("x", "cat")
    for broken in ("{", "[]", '{"name": 3}', "[" * 100_000, '{"class_noun": ["cat"]}'):
        (folder / "concept.json").write_text(broken)
        refused(folder, "concept.json is not a JSON object")
    (folder / "concept.json").write_text('{"class_noun": "<cat>"}')
    with pytest.raises(UserError, match="angle brackets"):
        load_concept(folder)


# --- captions ---


def test_captions(folder: Path) -> None:
    lines = [{"file_name": "1.png", "text": "from the list"}, {"file_name": "2.png", "text": "a cat, listed"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (folder / "1.txt").write_text("\ufeffa cat\non a  mat\n", encoding="utf-8")
    (folder / "10.txt").write_text(" \n")
    assert load_concept(folder, "cat").captions == ("a cat on a mat", "a cat, listed", None)


@pytest.mark.parametrize("line", ['{"text": "a cat"}', "{", "3"])
def test_a_broken_list_of_captions(folder: Path, line: str) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "fine"}\n' + line)
    refused(folder, "Line 2 of")


def test_a_caption_that_is_not_utf8(folder: Path) -> None:
    (folder / "2.txt").write_bytes("Kätzchen".encode("latin-1"))
    concept = load_concept(folder, "cat")
    assert concept.captions == (None, None, None) and "2.txt" in concept.warnings[0]


# --- images ---


def only(folder: Path, **given: Any) -> tuple[Concept, Image.Image]:
    concept = load_concept(folder, "cat", **given)
    assert len(concept.images) == 1 and concept.images[0].mode == "RGB"
    return concept, concept.images[0]


def close(pixel: Any, color: tuple[int, int, int], by: int = 6) -> bool:
    return all(abs(a - b) <= by for a, b in zip(pixel, color, strict=True))


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "seen"),
    [
        ("CMYK", (0, 255, 255, 0), "jpg", (254, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "tiff", (255, 0, 0)),
        ("L", 90, "png", (90, 90, 90)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (90, 255), "png", (90, 90, 90)),
        ("I;16", 90 * 257, "png", (90, 90, 90)),
        ("I;16", 90 * 257, "tiff", (90, 90, 90)),
        ("I", 90 * 257, "tiff", (90, 90, 90)),
        ("F", 90 / 255, "tiff", (90, 90, 90)),
        ("RGB", (9, 99, 199), "bmp", (9, 99, 199)),
        ("RGB", (9, 99, 199), "webp", (9, 99, 199)),
        ("YCbCr", (76, 84, 255), "jpg", (254, 0, 0)),
    ],
)
def test_kinds_of_pictures(tmp_path: Path, mode: str, color: Any, suffix: str, seen: Any) -> None:
    save: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    image = Image.new(mode, (80, 80), color)
    image.save(tmp_path / f"1.{suffix}", **save)
    concept, loaded = only(tmp_path, name="x")
    assert close(loaded.getpixel((40, 40)), seen) and concept.masks == (None,) and concept.warnings == ()


def test_a_palette(tmp_path: Path) -> None:
    image = picture(tmp_path / "raw" / "1.png")
    Image.open(image).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "1.png")
    _, loaded = only(tmp_path, name="x")
    assert close(loaded.getpixel((5, 5)), (0, 200, 0))


def test_a_turned_picture_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: its left side comes up
    picture(tmp_path / "1.jpg", (80, 60), exif=exif, quality=95)
    half_mask(tmp_path / "masks" / "1.png", (60, 80))
    concept, loaded = only(tmp_path, name="x")
    assert loaded.size == (60, 80) and concept.mask_sources == ("given",)
    assert close(loaded.getpixel((30, 5)), (0, 200, 0)) and close(loaded.getpixel((30, 75)), (0, 0, 0))
    half_mask(tmp_path / "masks" / "1.png", (80, 60))
    refused(tmp_path, "60 x 80 px upright", name="x")


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_of_an_animation_the_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / f"1.{suffix}", save_all=True, append_images=frames[1:])
    concept, loaded = only(tmp_path, name="x")
    assert close(loaded.getpixel((5, 5)), (255, 0, 0))
    assert concept.warnings == (f"1.{suffix} has 2 frames; only the first is used.",)


def test_damaged_pictures_are_named_and_skipped(folder: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8))
    noise.save(folder / "3.jpg")
    whole = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "4.png").write_text("not an image")
    (folder / "5.png").touch()
    (folder / "6.heic").touch()
    concept = load_concept(folder, "cat")
    assert concept.sources == ("1.png", "2.png", "10.png")
    for name in ("3.jpg", "4.png", "5.png", "6.heic"):
        assert sum(f"{name} is skipped" in warning for warning in concept.warnings) == 1
    for name in concept.sources:
        (folder / name).unlink()
    refused(folder, "No image in")
    refused(folder, "3.jpg is skipped")


def test_a_picture_30000_pixels_wide(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg", (30000, 200))
    half_mask(tmp_path / "1-masklabel.png", (3000, 20))
    concept, loaded = only(tmp_path, name="x")
    assert loaded.size == (30000, 200)  # what is learnt is 200 px a side: nothing to gain from reducing it
    assert concept.masks[0] is not None and concept.masks[0].size == loaded.size
    assert concept.warnings == ("1.jpg is 30000 x 200 px, an extreme shape, of which only the middle is learnt.",)


def test_a_picture_too_large_to_be_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)
    Image.new("1", (30000, 1000)).save(folder / "3.png")  # more than twice the limit: Pillow refuses
    Image.new("1", (5000, 3000)).save(folder / "4.png")  # between the limit and twice it: Pillow warns
    concept = load_concept(folder, "cat")
    assert concept.sources == ("1.png", "2.png", "4.png", "10.png")
    assert concept.warnings == ("3.png is skipped: it has more than 20 million pixels; reduce it first.",)


def test_large_pictures_are_reduced_and_small_ones_named(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", (2100, 1500))
    picture(tmp_path / "2.png", (20, 30))
    picture(tmp_path / "3.jpg", (2200, 2100))  # decoded smaller
    half_mask(tmp_path / "3-masklabel.png", (2200, 2100))
    concept = load_concept(tmp_path, "cat", name="x")
    assert [image.size for image in concept.images] == [(1434, 1024), (20, 30), (1073, 1024)]
    assert concept.warnings == ("2.png is very small (20 x 30 px).",)


# --- masks ---


def coverage(mask: Image.Image | None) -> float:
    assert mask is not None and mask.mode == "L"
    return float(np.asarray(mask).mean() / 255)


@pytest.mark.parametrize("where", ["masks/1.png", "1-masklabel.png", "elsewhere/1.png", "masks/1-masklabel.png"])
def test_where_masks_lie(tmp_path: Path, where: str) -> None:
    picture(tmp_path / "1.jpg")
    half_mask(tmp_path / where)
    given = {"masks_dir": tmp_path / "elsewhere"} if where.startswith("elsewhere") else {}
    concept, _ = only(tmp_path, name="x", **given)
    assert coverage(concept.masks[0]) == pytest.approx(0.5, abs=0.01) and concept.mask_sources == ("given",)


def test_the_alpha_channel_is_a_mask_unless_it_is_opaque(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", mode="RGBA", color=(0, 200, 0, 255))
    picture(tmp_path / "2.png", mode="RGBA", color=(0, 200, 0, 255), size=(80, 60))
    Image.new("RGBA", (80, 60), (1, 2, 3, 255)).save(tmp_path / "2.png")
    concept = load_concept(tmp_path, "cat", name="x")
    assert concept.mask_sources == ("alpha", None)
    assert coverage(concept.masks[0]) == 0.5
    assert concept.images[0].getpixel((79, 5)) == (255, 255, 255)  # seen as viewers show it
    half_mask(tmp_path / "masks" / "1.png")
    assert load_concept(tmp_path, "cat", name="x").mask_sources == ("given", None)


def test_a_transparent_colour_of_a_palette(tmp_path: Path) -> None:
    image = Image.new("P", (64, 64), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (0, 0, 32, 64))
    image.save(tmp_path / "1.png", transparency=0)
    concept, loaded = only(tmp_path, name="x")
    assert coverage(concept.masks[0]) == 0.5 and loaded.getpixel((5, 5)) == (255, 0, 0)


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", (80, 60))
    half_mask(tmp_path / "masks" / "1.png", (161, 120))
    concept, _ = only(tmp_path, name="x")
    assert concept.masks[0] is not None and concept.masks[0].size == (80, 60)
    half_mask(tmp_path / "masks" / "1.png", (60, 60))
    refused(tmp_path, "1.png is 60 x 60 px, but its image 1.png is 80 x 60 px", name="x")


def test_masks_of_no_use(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    half_mask(tmp_path / "masks" / "1.png", white=0)
    (tmp_path / "masks" / "2.png").write_text("not an image")
    refused(tmp_path, "2 mistakes in the images", name="x")
    refused(tmp_path, f"{tmp_path / 'masks' / '1.png'} is all black", name="x")
    refused(tmp_path, f"{tmp_path / 'masks' / '2.png'} is of no use", name="x")
    Image.new("RGBA", (80, 60)).save(tmp_path / "1.png")
    (tmp_path / "masks" / "1.png").unlink()
    (tmp_path / "masks" / "2.png").unlink()
    refused(tmp_path, "1.png is wholly transparent", name="x")


def test_a_mask_of_zeros_and_ones(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    half_mask(tmp_path / "masks" / "1.png", white=1)
    assert coverage(only(tmp_path, name="x")[0].masks[0]) == 0.5


def test_a_mask_outside_the_square_that_is_learnt(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", (200, 64))
    mask = Image.new("L", (200, 64))
    mask.paste(255, (0, 0, 40, 64))
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / "1.png")
    assert "middle square" in only(tmp_path, name="x")[0].warnings[0]


def test_missing_masks(folder: Path) -> None:
    refused(folder, "is not a folder", masks_dir=folder / "absent")
    half_mask(folder / "masks" / "other.png")
    refused(folder, "The mask of 1.png must be called 1.png", masks_dir=folder / "masks")
    half_mask(folder / "masks" / "2.png")
    concept = load_concept(folder, "cat", masks_dir=folder / "masks")
    assert concept.mask_sources == (None, "given", None)
    assert concept.warnings[0] == f"1.png has no mask in {folder / 'masks'}."


def test_reading_pictures_does_not_load_torch() -> None:
    modules = "infusion.concepts.concept, infusion.settings, infusion.cli.main"
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
