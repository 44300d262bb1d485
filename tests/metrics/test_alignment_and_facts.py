"""Alignment to text and images, and the toybox's facts, on renders whose truth is known."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from infusion.errors import UserError
from infusion.metrics.alignment import text_alignment
from infusion.metrics.copies import nearest_reference
from infusion.metrics.encoders import load_clip, load_image_encoder
from infusion.metrics.facts import FACTS, Satisfaction, both_present, satisfied_facts, subject_masks, two_of
from infusion.metrics.identity import Alignment, image_alignment
from infusion.toybox.judges import load_judges
from infusion.toybox.render import render
from infusion.toybox.scene import CLASSES, HELD_OUT_SCENES, concept_scene, individual, sample_scene

PLACES = ("meadow", "brick wall", "snow", "beach")


@pytest.fixture(scope="module")
def judges():
    return load_judges("a")


@pytest.fixture(scope="module")
def photos():
    """One fish in four places, and another fish in the same places: [4, 3, 64, 64] each."""
    fish = [individual(seed, "fish") for seed in (500_000, 500_016)]
    return [render([concept_scene(who, n, place) for n, place in enumerate(PLACES)]).images for who in fish]


def nouns_of(scene):
    return [toy.individual.class_noun for toy in scene.toys]


def scenes_of(num, num_toys, keep):
    """The first held-out scenes by day, drawn as photos, that are to be kept."""
    seeds = iter(HELD_OUT_SCENES)
    some = (sample_scene(seed, num_toys) for seed in seeds)
    kept = (s for s in some if (s.style, s.time) == ("photo", "day") and keep(nouns_of(s)))
    return [next(kept) for _ in range(num)]


@pytest.fixture(scope="module")
def singles():
    scenes = scenes_of(16, 1, lambda nouns: True)
    return scenes, render(scenes)


@pytest.fixture(scope="module")
def pairs():
    scenes = scenes_of(16, 2, lambda nouns: nouns[0] != nouns[1])
    return scenes, render(scenes).images


@pytest.fixture(scope="module")
def twins():
    scenes = scenes_of(16, 2, lambda nouns: nouns[0] == nouns[1])
    return scenes, render(scenes).images


def test_a_picture_is_aligned_with_its_own_text(photos):
    clip = load_clip("toybox-a")
    right = ["a fish in a meadow", "a fish in front of a brick wall", "a fish in the snow", "a fish on a beach"]
    aligned, crossed = (
        text_alignment(clip.encode_images(photos[0]), clip.encode_texts(texts))
        for texts in (right, right[2:] + right[:2])
    )
    assert aligned.shape == (4,) and aligned.abs().max() <= 1
    assert (aligned > crossed).all()
    image, text = clip.encode_images(photos[0][1:2])[0], clip.encode_texts(right[1:2])[0]
    assert aligned[1].item() == pytest.approx((image @ text).item(), abs=1e-5)


@pytest.mark.parametrize("load", [load_clip, load_image_encoder])
def test_pictures_are_aligned_with_references(load, photos):
    images = load("toybox-b").encode_images(photos[0])
    references = images[:2]
    found = image_alignment(images, references)
    each = torch.stack([image_alignment(images, one[None]) for one in references], dim=1)
    assert each.shape == (4, 2)
    torch.testing.assert_close(found, each.mean(dim=1))
    torch.testing.assert_close(each.diagonal(), torch.ones(2))
    closest = nearest_reference(images, references)
    torch.testing.assert_close(closest.cosine, each.amax(dim=1))
    assert closest.reference[:2].tolist() == [0, 1]


def test_a_scale_reaches_from_the_class_to_the_concept(photos):
    encoder = load_image_encoder("toybox-a")
    concept, other = (encoder.encode_images(some) for some in photos)
    scale = Alignment.measured(concept[:2], other, concept[2:])
    assert scale.floor < scale.ceiling < 1
    floor, ceiling = (image_alignment(some, concept[:2]).mean().item() for some in (other, concept[2:]))
    assert (scale.floor, scale.ceiling) == pytest.approx((floor, ceiling))
    with pytest.raises(UserError, match="no more like"):
        Alignment(0.6, 0.6)


def true_wants(scene):
    toy = scene.toys[0]
    nouns = nouns_of(scene)
    wants = {
        "class": nouns[0],
        "color": toy.color_name,
        "background": scene.background,
        "style": scene.style,
        "time": scene.time,
        "count": len(nouns),
    }
    return wants | ({"second": nouns[1], "relation": scene.relation} if len(nouns) == 2 else {})


def other_than(fact, value):
    return FACTS[fact][FACTS[fact].index(value) - 1]


def test_what_is_true_of_a_render_holds(judges, singles, pairs):
    for scenes, images in ((singles[0], singles[1].images), pairs):
        wanted = [true_wants(scene) for scene in scenes]
        found = satisfied_facts(judges, images, wanted)
        assert found.asked.shape == found.holds.shape == (16, len(FACTS))
        assert not (found.holds & ~found.asked).any()
        assert found.asked.sum(dim=1).tolist() == [len(facts) for facts in wanted]
        assert found.satisfied.mean() > 0.85
        assert all(figure.value > 0.6 for figure in found.figures().values()), found.figures()
        expected = {fact for facts in wanted for fact in facts}
        assert found.figures().keys() == expected


def untrue(facts, fact):
    """Wants of one fact that the scene with these facts does not have."""
    absent = next(noun for noun in CLASSES if noun not in (facts["class"], facts.get("second")))
    turned = {"left of": "right of", "right of": "left of", "next to": "on top of", "on top of": "next to"}
    if fact == "class":
        return {"class": absent}
    if fact == "second":
        return {"class": facts["class"], "second": absent}
    if fact == "relation":
        return {**facts, "relation": turned[facts["relation"]]}
    return {**facts, fact: other_than(fact, facts[fact])}


@pytest.mark.parametrize("fact", FACTS)
def test_what_is_false_of_a_render_does_not_hold(judges, singles, pairs, fact):
    scenes, images = pairs if fact in ("second", "relation") else (singles[0], singles[1].images)
    found = satisfied_facts(judges, images, [untrue(true_wants(scene), fact) for scene in scenes])
    assert found.figures()[fact].num == 16
    assert found.figures()[fact].value < 0.2
    assert not (found.holds & ~found.asked).any()


def test_next_to_is_on_either_side(judges, pairs):
    scenes, images = pairs
    rows = [row for row, scene in enumerate(scenes) if scene.relation in ("left of", "right of")]
    wanted = [{**true_wants(scenes[row]), "relation": "next to"} for row in rows]
    for shown in (images[rows], images[rows].flip(-1)):
        assert satisfied_facts(judges, shown, wanted).figures()["relation"].value > 0.8


def test_shares_are_of_what_was_asked():
    asked = torch.zeros(2, len(FACTS), dtype=torch.bool)
    asked[0, :4] = asked[1, 0] = True
    holds = asked.clone()
    holds[0, 0] = False
    found = Satisfaction(asked, holds)
    assert found.satisfied.tolist() == [0.75, 1]
    figures = found.figures()
    assert list(figures) == ["class", "color", "background", "style"]
    assert figures["class"].value == 0.5 and figures["class"].num == 2 and figures["style"].num == 1


def test_wants_that_no_judge_can_read_are_refused_in_a_sentence(judges):
    image = torch.rand(1, 3, 64, 64)
    wrong: list[tuple[dict[str, str | int], str]] = [
        ({"clas": "cat"}, 'mean "class"'),
        ({"class": "catt"}, 'mean "cat"'),
        ({"count": 9}, "1, 2, 3"),
        ({"color": "red"}, "needs class"),
        ({"class": "cat", "relation": "left of"}, "needs class and second"),
        ({"class": "cat", "second": "cat"}, "count 2"),
    ]
    for facts, hint in wrong:
        with pytest.raises(UserError, match=hint):
            satisfied_facts(judges, image, [facts])
    for ask in (subject_masks, two_of, partial(both_present, noun_b="cat")):
        with pytest.raises(UserError, match="lion"):
            ask(judges, image, "lion")


def test_masks_lie_on_the_subject(judges, singles):
    scenes, rendering = singles
    for row, scene in enumerate(scenes[:6]):
        masks = subject_masks(judges, rendering.images[row : row + 1], nouns_of(scene)[0])
        assert masks.shape == (1, 64, 64) and masks.min() >= 0 and masks.max() <= 1
        true, found = rendering.masks[row, 0] > 0.5, masks[0] > 0.5
        assert (true & found).sum() / (true | found).sum() > 0.5, nouns_of(scene)
    assert subject_masks(judges, torch.rand(2, 3, 96, 80), "cat").shape == (2, 96, 80)


def test_two_classes_are_both_present(judges, singles, pairs):
    scenes, images = pairs
    found = [both_present(judges, images[row : row + 1], *nouns_of(s)).item() for row, s in enumerate(scenes)]
    assert sum(found) >= 13
    missing = [next(noun for noun in CLASSES if noun not in nouns_of(scene)) for scene in scenes]
    rows = enumerate(zip(scenes, missing, strict=True))
    wrong = [both_present(judges, images[row : row + 1], nouns_of(s)[0], noun).item() for row, (s, noun) in rows]
    assert sum(wrong) <= 1
    assert both_present(judges, images, "cat", "dog").tolist() == both_present(judges, images, "dog", "cat").tolist()


def test_two_of_one_class_are_two(judges, singles, pairs, twins):
    def twice(ask, scenes, images):
        return sum(ask(judges, images[row : row + 1], nouns_of(s)[0]).item() for row, s in enumerate(scenes))

    assert twice(two_of, *twins) >= 14
    assert twice(two_of, singles[0], singles[1].images) <= 1 and twice(two_of, *pairs) <= 1


def test_two_toys_apart_are_two(judges):
    alone = concept_scene(individual(500_000, "cat"), 1, "meadow")
    camera, toy = replace(alone.camera, half_height=1.6), alone.toys[0]

    def cats(*places):
        return replace(alone, camera=camera, toys=tuple(replace(toy, position=(x, 0.0, 0.0)) for x in places))

    images = render([cats(-0.9, 0.9), cats(0.0)]).images
    assert two_of(judges, images, "cat").tolist() == [True, False]
    assert two_of(judges, images, "dog").tolist() == [False, False]
