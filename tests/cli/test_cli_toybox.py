"""`infusion toybox`: folders as people have them, resumed, and refused in one sentence."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from infusion.cli import toybox as cli_toybox
from infusion.concepts.concept import load_concept


@pytest.fixture
def run(run: Run) -> Run:
    """`infusion toybox ...`"""
    return partial(run, "toybox")


def test_render_writes_pictures_with_everything_that_is_true_of_them(run):
    assert run("render", 3, "-o", "world", "--first-seed", 7)[0] == 0
    facts = [json.loads(line) for line in Path("world/metadata.jsonl").read_text().splitlines()]
    assert [one["seed"] for one in facts] == [7, 8, 9]
    for one in facts:
        name = one["file_name"].removesuffix(".png")
        assert Image.open(f"world/{name}.png").size == (64, 64)
        assert Path(f"world/{name}.txt").read_text().strip() == one["text"]
        assert one["toys"][0]["individual"]["class_noun"] and one["camera"]["elevation"] > 0
        truth = np.load(f"world/truth/{name}.npz")
        assert truth["masks"].shape == (3, 64, 64) and truth["depth"].shape == truth["parts"].shape == (64, 64)
        seen = np.asarray(Image.open(f"world/masks/{name}.png")) > 127
        assert ((truth["masks"].sum(0) >= 0.5) == seen).mean() > 0.999
        assert truth["masks"][len(one["toys"]) :].max(initial=0) == 0


def test_render_goes_on_where_it_stopped(run):
    run("render", 2, "-o", "world")
    before = Path("world/000000.png").stat().st_mtime_ns
    Path("world/truth/000001.npz").unlink()
    Path("world/000001.png").unlink()
    assert run("render", 3, "-o", "world")[0] == 0
    assert Path("world/000000.png").stat().st_mtime_ns == before
    assert Path("world/000001.png").exists() and len(Path("world/metadata.jsonl").read_text().splitlines()) == 3
    run("render", 1, "-o", "world", "--first-seed", 50)
    assert [json.loads(line)["seed"] for line in Path("world/metadata.jsonl").read_text().splitlines()] == [0, 1, 2, 50]
    code, _, error = run("render", 4, "-o", "world", "--size-px", 32)
    assert code == 1 and "holds images of 64 pixels" in error


def test_concept_writes_what_training_reads(run):
    code, told, _ = run("concept", 12, "-o", "toy", "--num-held-out", 4)
    about = json.loads(Path("toy/about.json").read_text())
    noun = about["individual"]["class_noun"]
    assert (code == 0 and f"--class-noun '{noun}'" in told) or f"--class-noun {noun}" in told
    concept = load_concept(Path("toy/train"), class_noun=noun)
    assert len(concept.images) == 5 and all(concept.masks)
    held_out = load_concept(Path("toy/held-out"), class_noun=noun)
    assert len(held_out.images) == 4
    assert not {image.tobytes() for image in held_out.images} & {image.tobytes() for image in concept.images}


def test_reserved_individuals_come_with_a_warning(run, monkeypatch):
    monkeypatch.setattr(cli_toybox, "FIRST_RESERVED_CONCEPT", 30)  # no test draws one that is reserved indeed
    one = ("--num-images", 1, "--num-held-out", 0)
    assert "tune nothing on this one" in run("concept", 30, *one)[1]
    assert "tune nothing" not in run("concept", 29, *one)[1]


def test_individuals_are_not_mixed_in_one_folder(run):
    assert run("concept", 1, "-o", "toy", "--num-held-out", 0)[0] == 0
    code, _, error = run("concept", 2, "-o", "toy")
    assert code == 1 and "holds an individual already" in error


def test_sheet_is_one_picture(run):
    assert run("sheet", "-o", "sheet.png", "--size-px", 16)[0] == 0
    assert Image.open("sheet.png").width > 160


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("concept", 1, "--class-noun", "kat"), 'The toybox has no "kat"'),
        (("gates", "--judges", "c"), 'There are no judges "c". There are: a, b.'),
        (("gates", "--base", "nowhere"), 'No base model could be loaded from "nowhere"'),
        (("gates", "--base", "nowhere", "--write"), "No model card can be written for nowhere"),
        (("render", 1, "-o", "file/below"), "a part of that path is a file"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(run, words, told):
    Path("file").write_text("")
    code, _, error = run(*words)
    assert code == 1 and told in error and "Traceback" not in error
