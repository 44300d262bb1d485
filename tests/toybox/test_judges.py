import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from infusion.foundation.judging import (
    FIRST_INDIVIDUAL,
    auc,
    identity_likeness,
    measure_any,
    measure_clip,
    measure_pairs,
    measure_singles,
)
from infusion.metrics.encoders import load_image_encoder
from infusion.toybox.judges import JUDGE_SETS, Facts, judges_dir, load_judges
from infusion.toybox.render import render
from infusion.toybox.scene import FIRST_RESERVED_CONCEPT, HELD_OUT_SCENES, sample_scene


@pytest.fixture(scope="module")
def judges():
    return load_judges("a")


@pytest.fixture(scope="module")
def singles():
    """Held-out scenes with one toy, and their images [12, 3, 64, 64]."""
    scenes = [sample_scene(HELD_OUT_SCENES.start + n, num_toys=1) for n in range(12)]
    return scenes, render(scenes)


def test_facts_are_probabilities(judges, singles):
    facts = judges.read(singles[1].images)
    shapes = {field.name: tuple(getattr(facts, field.name).shape) for field in fields(Facts)}
    expected = {"classes": 16, "backgrounds": 10, "styles": 4, "times": 3, "accessories": 4, "sizes": 3, "counts": 3}
    assert shapes == {name: (12, number) for name, number in expected.items()} | {"colors": (12, 16, 10)}
    for name in ("colors", "backgrounds", "styles", "times", "sizes", "counts"):
        total = getattr(facts, name).sum(dim=-1)
        torch.testing.assert_close(total, torch.ones_like(total))
    for name in ("classes", "accessories"):
        assert getattr(facts, name).min() >= 0 and getattr(facts, name).max() <= 1


@pytest.mark.parametrize("name", JUDGE_SETS)
def test_the_facts_of_held_out_toys_are_read(name):
    found = measure_singles(load_judges(name), 64)
    least = {"class": 0.85, "color": 0.75, "background": 0.95, "style": 0.9, "time": 0.95, "size": 0.75}
    for figure, bound in least.items():
        (value,) = (measured.value for text, measured in found.items() if text.startswith(figure))
        assert value >= bound, (figure, value)


def test_the_facts_of_several_toys_are_read(judges):
    pairs, some = measure_pairs(judges, 32), measure_any(judges, 32)
    assert pairs["both classes of two toys"].value >= 0.5
    assert pairs["relation of two toys"].value >= 0.7
    assert some["number of toys"].value >= 0.85
    assert some["segmentation, mean IoU"].value >= 0.5


@pytest.mark.slow
def test_clip_and_identity_are_far_from_chance():
    assert measure_clip("toybox-a", 64)["CLIP: picture to caption, of 64"].value >= 0.15  # chance is 1/64
    assert auc(identity_likeness(load_image_encoder("toybox-a"), 16, ("photo",))) >= 0.85  # chance is 1/2


def test_the_area_under_the_curve():
    perfect = np.array([[[0.9, 0.1, 0.2]], [[0.8, 0.3, 0.1]]])
    assert auc(perfect) == 1.0
    assert auc(-perfect) == 0.0
    assert auc(np.ones((3, 1, 5))) == 0.5
    assert auc(np.array([[[0.5, 0.1, 0.9]]])) == 0.5


def test_a_segment_lies_on_its_toy(judges, singles):
    scenes, rendering = singles
    for row, scene in enumerate(scenes[:8]):
        noun = scene.toys[0].individual.class_noun
        image, mask = rendering.images[row : row + 1], rendering.masks[row, 0]
        segment = judges.segment(image, noun)[0]
        assert segment.shape == (64, 64) and segment.min() >= 0 and segment.max() <= 1
        assert segment[mask == 1].mean() > segment[mask == 0].mean() + 0.3, noun
        assert judges.segment(F.interpolate(image, (96, 80)), noun).shape == (1, 96, 80)
        other = "car" if noun != "car" else "cat"
        assert judges.segment(image, other).mean() < 0.5 * segment.mean()


def test_relations_turn_round(judges):
    seeds = (HELD_OUT_SCENES.start + n for n in range(100))
    pairs = [sample_scene(seed, num_toys=2) for seed in seeds]
    scene = next(
        scene for scene in pairs if scene.relation == "left of" and (scene.style, scene.time) == ("photo", "day")
    )
    image = render([scene]).images
    first, second = (toy.individual.class_noun for toy in scene.toys)
    assert judges.relation(image, first, second) == ["left of"]
    assert judges.relation(image, second, first) == ["right of"]
    assert judges.relation(image.flip(-1), first, second) == ["right of"]
    assert judges.relation(image, first, first) == [None]
    absent = next(noun for noun in ("car", "teapot", "fish") if noun not in (first, second))
    assert judges.relation(image, first, absent) == [None]


def test_pictures_may_have_any_size(judges, singles):
    scenes = singles[0][:8]
    small, large = (judges.read(render(scenes, size).images) for size in (64, 128))
    assert sum(a == b for a, b in zip(small.class_noun(), large.class_noun(), strict=True)) >= 6
    assert sum(a == b for a, b in zip(small.background(), large.background(), strict=True)) >= 7


def test_what_facts_say():
    def row(number, *ones):
        values = torch.full((1, number), 0.01)
        values[0, list(ones)] = 0.9
        return values

    colors = torch.zeros(1, 16, 10)
    colors[0, 1, 4] = 1
    facts = Facts(row(16, 0, 1), colors, row(10, 3), row(4, 1), row(3, 2), row(4), row(3, 0), row(3, 1))
    assert facts.shows("cat", "dog").tolist() == [True]
    assert facts.shows("cat", "fish").tolist() == [False]
    assert facts.color_of("dog") == ["blue"]
    said = (facts.background(), facts.style(), facts.time(), facts.size(), facts.count(), facts.accessory())
    assert said == (["desert"], ["sketch"], ["night"], ["small"], [2], [None])


def test_the_two_sets_share_nothing(judges, singles):
    other = load_judges("b")
    ours, theirs = judges.reader.state_dict(), other.reader.state_dict()
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours if name.endswith("weight"))
    assert not torch.equal(judges.read(singles[1].images).classes, other.read(singles[1].images).classes)
    records = [json.loads((judges_dir(name) / "record.json").read_text()) for name in JUDGE_SETS]
    for kind, first_held_out in (("scene_seeds", HELD_OUT_SCENES.start), ("individual_seeds", FIRST_INDIVIDUAL)):
        (a_first, a_end), (b_first, b_end) = (record[kind] for record in records)
        assert a_first < a_end <= b_first < b_end <= first_held_out < FIRST_RESERVED_CONCEPT
