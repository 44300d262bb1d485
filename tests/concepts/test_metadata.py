"""Folders in the layout of Hugging Face's imagefolder, good and bad."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from test_concept import coverage, half_mask, picture, refused

from infusion.concepts.concept import load_concept


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1.png", "images/2.png", "images/10.png"):
        picture(tmp_path / "cat" / name)
    return tmp_path / "cat"


def write(folder: Path, *rows: Mapping[str, object]) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def test_pictures_in_sub_folders_are_those_that_are_named(folder: Path) -> None:
    picture(folder / "images" / "3.png")
    write(folder, {"file_name": "images/10.png", "text": "a cat"}, {"file_name": "images\\2.png"})
    concept = load_concept(folder, "cat")
    assert concept.sources == ("1.png", "images/2.png", "images/10.png")
    assert concept.captions == (None, None, "a cat") and concept.warnings == ()
    (folder / "1.png").unlink()
    (folder / "images" / "2.txt").write_text("the cat")
    assert load_concept(folder, "cat").captions == ("the cat", "a cat")


def test_only_line_feeds_end_a_line(folder: Path) -> None:
    text = "a cat\u2028asleep"
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": text}, ensure_ascii=False))
    assert load_concept(folder, "cat").captions == ("a cat asleep",)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(f"file_name,text\n1.png,{text}\n")
    assert load_concept(folder, "cat").captions == ("a cat asleep",)


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_table(folder: Path, separator: str) -> None:
    lines = ["file_name|text|mask_file_name", '1.png|"a cat, ""Mia"",\nasleep"|', "images/2.png||seg/2.png"]
    (folder / "metadata.csv").write_text("\ufeff" + "\r\n".join(lines).replace("|", separator), encoding="utf-8")
    half_mask(folder / "seg" / "2.png")
    concept = load_concept(folder, "cat")
    assert concept.captions == ('a cat, "Mia", asleep', None)
    assert concept.mask_sources == (None, "given") and coverage(concept.masks[1]) == 0.5


def test_masks_that_are_named(folder: Path) -> None:
    half_mask(folder / "1_mask.png")
    half_mask(folder / "masks" / "1.png", white=128)
    half_mask(folder / "masks" / "images" / "2.png")
    half_mask(folder / "images" / "10-masklabel.png")
    rows = [{"file_name": name} for name in ("1.png", "images/2.png", "images/10.png")]
    write(folder, rows[0] | {"mask": "1_mask.png"}, rows[1] | {"mask": {"rle": 3}}, rows[2])
    concept = load_concept(folder, "cat")
    assert concept.sources == ("1.png", "images/2.png", "images/10.png")  # a mask is no image
    assert [coverage(mask) for mask in concept.masks] == [0.5] * 3 and concept.warnings == ()
    assert load_concept(folder, "cat", masks_dir=folder / "masks").mask_sources == ("given", "given", None)


def test_what_is_named_but_not_there(folder: Path) -> None:
    write(folder, {"file_name": "9.png"}, {"file_name": "1.png"}, {"file_name": "1.png", "text": "last"})
    concept = load_concept(folder, "cat")
    assert concept.captions == ("last",)
    assert concept.warnings == (
        "9.png is named in the metadata, but is not there.",
        "1.png has several rows in the metadata; the last is used.",
    )
    write(folder, {"file_name": "1.png", "mask_file_name": "9.png"})
    refused(folder, "9.png is of no use: it cannot be read (No such file or directory)")
    write(folder, {"file_name": "1.png", "mask_file_name": "1.png"})
    refused(folder, "is named as a mask")
    write(folder, {"file_name": "x" * 5000 + ".png"}, {"file_name": "a\0.png"})
    assert len(load_concept(folder, "cat").warnings) == 2


@pytest.mark.parametrize("path", ["../1.png", "images/../../1.png", "/etc/1.png", "C:\\1.png", "..\\1.png", "\\\\a\\b"])
@pytest.mark.parametrize("column", ["file_name", "mask"])
def test_paths_that_leave_the_folder(folder: Path, path: str, column: str) -> None:
    picture(folder.parent / "1.png")
    write(folder, {"file_name": "1.png"}, {"file_name": "1.png"} | {column: path})
    refused(folder, f'metadata.jsonl names "{path}", outside its folder')


@pytest.mark.parametrize(
    "line", ['{"text": "a cat"}', "{", "3", '{"file_name": 5}', "[" * 100_000, '{"file_name": " "}']
)
def test_broken_lines(folder: Path, line: str) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png"}\n\n' + line)
    refused(folder, "Line 3 of")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'has no column "file_name"'),
        ("image,text\n1.png,a cat\n", 'has no column "file_name" in its first line, "image,text"'),
        ("file_name,text\n1.png,a cat, asleep\n", "Line 2 of"),
        ('file_name,text\n1.png,"a cat\n', "is not CSV"),
        ("file_name,text\n,a cat\n", "has no file name"),
        ("file_name,text\n1.png," + "x" * 200_000 + "\n", "is not CSV"),
    ],
)
def test_broken_tables(folder: Path, text: str, words: str) -> None:
    (folder / "metadata.csv").write_text(text)
    refused(folder, words)


def test_metadata_that_cannot_be_used(folder: Path) -> None:
    (folder / "metadata.csv").write_bytes("file_name,text\n1.png,Kätzchen".encode("latin-1"))
    refused(folder, "is not readable UTF-8")
    write(folder, {"file_name": "1.png"})
    refused(folder, "has both metadata.jsonl and metadata.csv")
