import ast
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from infusion.concepts.concept import load_concept
from infusion.toybox.backdrop import paint
from infusion.toybox.captions import HOURS, PLACES, SIZE_WORDS, caption, mentions, plural, told_facts
from infusion.toybox.concepts import concept_images, write_concept
from infusion.toybox.render import render
from infusion.toybox.scene import (
    ACCESSORIES,
    BACKGROUNDS,
    CLASSES,
    COLORS,
    FIRST_RESERVED_CONCEPT,
    NECKS,
    PARTS,
    PATTERNS,
    STYLES,
    TOPS,
    Accessory,
    concept_scene,
    individual,
    sample_scene,
)


def test_a_seed_is_a_scene_and_a_picture():
    assert sample_scene(5) == sample_scene(5) != sample_scene(6)
    first, again = render([sample_scene(5)]).images, render([sample_scene(6), sample_scene(5)]).images[1:]
    torch.testing.assert_close(first, again)
    assert first.min() >= 0 and first.max() <= 1


def test_masks_are_where_the_picture_differs_from_its_backdrop():
    scene = concept_scene(individual(3), 0, "brick wall")
    drawn = render([scene], 32)
    backdrop = paint([(scene.background, scene.backdrop_seed)], 64).reshape(3, 32, 2, 32, 2).mean((2, 4))
    changed = (drawn.images[0] - backdrop).abs().amax(0)
    mask = drawn.masks[0, 0]
    assert 0.1 < mask.mean() < 0.6
    assert changed[mask == 1].gt(0.02).float().mean() > 0.95
    shadow_free = torch.arange(32)[:, None].expand(32, 32) < 8
    assert changed[(mask == 0) & shadow_free].max() < 0.02


def test_a_picture_does_not_depend_on_what_is_drawn_beside_it():
    scenes = [sample_scene(seed) for seed in range(12)]
    together = render(scenes)
    for number in (0, 5, 11):
        alone = render([scenes[number]])
        torch.testing.assert_close(together.images[number], alone.images[0])
        torch.testing.assert_close(together.masks[number], alone.masks[0])


def test_styles_and_hours_change_the_picture_and_nothing_that_is_true_of_it():
    scene = concept_scene(individual(2), 0, "beach")
    drawn = render([replace(scene, style=style) for style in STYLES])
    for number in range(1, len(STYLES)):
        assert (drawn.images[number] - drawn.images[0]).abs().mean() > 0.04
        assert (drawn.masks[number] == drawn.masks[0]).all() and (drawn.depth[number] == drawn.depth[0]).all()
    by_day, sunset, night = render([replace(scene, time=time) for time in ("day", "sunset", "night")]).images
    assert night.mean() < 0.7 * by_day.mean()
    assert (sunset[0] - sunset[2]).mean() > (by_day[0] - by_day[2]).mean() + 0.05


@pytest.mark.parametrize("kind", ACCESSORIES)
def test_an_accessory_is_seen_on_everyone_who_can_wear_it(kind):
    anchors = TOPS if kind in ("hat", "crown") else NECKS
    worn = Accessory(kind, "red", COLORS["red"])
    for noun in anchors:
        scene = concept_scene(individual(0, noun), 0, "snow")
        front = replace(scene.toys[0], yaw=scene.camera.azimuth, accessory=worn)
        parts = render([replace(scene, toys=(front,))]).parts
        assert (parts == PARTS.index("accessory")).sum() >= 20, noun
        assert render([scene]).parts.max() < PARTS.index("accessory")


@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_sizes_are_seen(name):
    scenes = [sample_scene(seed, num_toys=1) for seed in range(120)]
    heights = [render([s]).masks[0, 0].amax(1).sum() for s in scenes if s.toys[0].size_name == name][:5]
    low, high = {"small": (10, 34), "medium": (20, 60), "large": (38, 64)}[name]
    assert len(heights) == 5 and all(low < height <= high for height in heights), heights


def test_parts_and_depth_agree_with_the_masks():
    drawn = render([sample_scene(seed, num_toys=2) for seed in range(4)])
    solid = drawn.masks.sum(1) > 0.99
    empty = drawn.masks.sum(1) == 0
    assert (drawn.parts[solid] >= 0).all() and drawn.depth[solid].isfinite().all()
    assert (drawn.parts[empty] == -1).all() and drawn.depth[empty].isinf().all()
    assert drawn.parts.max() >= PARTS.index("dark")


def test_turning_camera_and_toy_together_changes_nothing():
    scene = concept_scene(individual(1), 0, "snow")
    toy, camera = scene.toys[0], scene.camera
    centred = replace(toy, position=(0.0, 0.0, 0.0))
    before = replace(scene, toys=(centred,))
    turned = replace(
        scene,
        toys=(replace(centred, yaw=toy.yaw + 1.0),),
        camera=replace(camera, azimuth=camera.azimuth + 1.0),
    )
    torch.testing.assert_close(render([before]).images, render([turned]).images, atol=0.02, rtol=0)
    only_camera = replace(before, camera=replace(camera, azimuth=camera.azimuth + 1.0))
    assert (render([before]).images - render([only_camera]).images).abs().max() > 0.2


@pytest.mark.parametrize("seed", range(40))
def test_relations_are_true_of_the_picture(seed):
    scene = sample_scene(seed, num_toys=2)
    ticks = torch.arange(64.0)
    masks = render([scene]).masks[0, :2]
    columns = [((m.sum(0) * ticks).sum() / m.sum()).item() for m in masks]
    rows = [((m.sum(1) * ticks).sum() / m.sum()).item() for m in masks]
    if scene.relation == "on top of":
        assert rows[0] < rows[1] - 5
    elif scene.relation != "next to":
        assert (scene.relation == "left of") == (columns[0] < columns[1])


def test_three_toys_stand_in_the_order_they_are_told_in():
    for seed in range(20):
        scene = sample_scene(seed, num_toys=3)
        masks = render([scene]).masks[0]
        columns = [((m.sum(0) * torch.arange(64.0)).sum() / m.sum()).item() for m in masks]
        assert columns == sorted(columns)


def test_captions_say_only_what_is_true():
    rng = random.Random(0)
    for seed in range(600):
        scene = sample_scene(seed)
        text = f" {caption(scene, rng)} ".replace(",", " ,")
        words = text.split()
        nouns = {toy.individual.class_noun for toy in scene.toys}
        assert all(noun in text or plural(noun) in text for noun in nouns)
        assert not any(f" {noun} " in text or f" {plural(noun)} " in text for noun in set(CLASSES) - nouns)
        colors = {toy.color_name for toy in scene.toys} | {t.accessory.color_name for t in scene.toys if t.accessory}
        assert not set(words) & (set(COLORS) - colors)
        worn = {toy.accessory.kind for toy in scene.toys if toy.accessory}
        assert not any(f" {kind} " in text for kind in set(ACCESSORIES) - worn)
        told_numbers = {"two": 2, "three": 3}
        assert all(told_numbers[word] == len(scene.toys) for word in words if word in told_numbers)
        others = [phrases for background, phrases in PLACES.items() if background != scene.background]
        assert not any(f" {phrase} " in text for phrases in others for phrase in phrases)
        for table, true in ((HOURS, scene.time), (SIZE_WORDS, scene.toys[0].size_name)):
            assert not any(f" {word} " in text for name, found in table.items() if name != true for word in found)
        assert not set(words) & ({"photo", *STYLES} - {scene.style})


def test_what_a_caption_tells_is_found_in_it():
    scene = sample_scene(4)  # a tiny white penguin with a blue scarf
    text = "a sketch of a tiny white penguin wearing a blue scarf in the forest"
    toy = replace(scene.toys[0], size_name="small")
    scene = replace(scene, toys=(toy,), background="forest", style="sketch", time="night")
    assert told_facts(scene, text) == {"class", "color", "size", "accessory", "background", "style"}
    assert told_facts(scene, "a penguin at night") == {"class", "time"}
    pair = next(s for s in (sample_scene(seed, 2) for seed in range(50)) if s.relation == "left of")
    pair = replace(pair, toys=tuple(replace(toy, color_name="red") for toy in pair.toys))
    nouns = [toy.individual.class_noun for toy in pair.toys]
    assert "color" not in told_facts(pair, f"a {nouns[0]} and a red {nouns[1]}")
    assert "color" in told_facts(pair, f"a red {nouns[0]} and a {nouns[1]}")
    assert "relation" in told_facts(pair, f"a {nouns[0]} to the left of a {nouns[1]}")


def test_mentions_are_the_words_of_the_toys():
    def found(scene, text, mirrored=False):
        return [(text[slice(*m.phrase)], text[slice(*m.noun)], m.toys) for m in mentions(scene, text, mirrored)]

    def of(*nouns):
        scene = sample_scene(1, num_toys=len(nouns))
        toys = [
            replace(toy, individual=replace(toy.individual, class_noun=noun))
            for toy, noun in zip(scene.toys, nouns, strict=True)
        ]
        return replace(scene, toys=tuple(toys))

    text = "a cartoon of a red striped car next to a hot air balloon"
    assert found(of("car", "hot air balloon"), text) == [
        ("red striped car", "car", (0,)),
        ("hot air balloon", "hot air balloon", (1,)),
    ]
    assert found(of("cat", "cat"), "two red cats") == [("red cats", "cats", (0, 1))]
    assert [who for _, _, who in found(of("cat", "cat"), "a cat left of a red cat")] == [(0,), (1,)]
    row = of("cat", "cat", "dog")
    assert [who for _, _, who in found(row, "a dog, a cat and a red cat", mirrored=True)] == [(1,), (0,), (2,)]


@pytest.mark.parametrize("mirrored", [False, True])
def test_every_word_is_bound_to_its_toy(mirrored):
    """Colours and patterns before each noun are that toy's, and what is told to be left is left in the image."""
    rng = random.Random(1)
    told_sides = 0
    for seed in range(300):
        scene = sample_scene(seed, num_toys=2 + seed % 2)
        text = caption(scene, rng, mirrored)
        for mention in mentions(scene, text, mirrored):
            words = set(text[slice(*mention.phrase)].split())
            assert words & set(COLORS) <= {scene.toys[number].color_name for number in mention.toys}, text
            if len(mention.toys) == 1:
                toy = scene.toys[mention.toys[0]]
                assert words & set(PATTERNS) <= {toy.individual.pattern.kind}, text
        side = re.search(r"(left|right) of", text)
        if side is None or len({toy.individual.class_noun for toy in scene.toys}) == 1:
            continue
        told_sides += 1
        view = [
            toy.position[0] * math.cos(scene.camera.azimuth) - toy.position[2] * math.sin(scene.camera.azimuth)
            for toy in scene.toys
        ]
        first_is_left = (view[0] < view[1]) != mirrored
        assert (side[1] == "left") == first_is_left, text
    assert told_sides > 50


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_has_words_and_looks_like_no_other(background):
    def color(name: str, seed: int) -> torch.Tensor:
        return paint([(name, seed)], 128)[0].mean((1, 2))

    assert PLACES[background]
    mine = color(background, 0)
    nearest_other = min((color(other, 1) - mine).norm() for other in BACKGROUNDS if other != background)
    assert (color(background, 1) - mine).norm() < nearest_other


def test_a_concept_is_one_individual_in_one_place(tmp_path):
    noun = write_concept(4, tmp_path / "toy", num_images=3)
    concept = load_concept(tmp_path / "toy", class_noun=noun)
    assert len(concept.images) == 3 and all(mask is not None for mask in concept.masks)
    assert {image.size for image in concept.images} == {(64, 64)}
    held_out, _ = concept_images(4, 2, backgrounds=["beach", "snow"], first=5)
    assert all(isinstance(image, Image.Image) for image in held_out)
    assert held_out[0].tobytes() != concept.images[0].tobytes()


def test_reserved_concepts_are_used_nowhere_in_the_repository():
    root = Path(__file__).parents[2]
    pixels, weights = 10_000_000, (19_169_280, 859_520_964)
    no_seeds = {("scene.py", FIRST_RESERVED_CONCEPT), ("test_concept.py", pixels), ("test_toybox.py", pixels)}
    no_seeds |= {(file, number) for file in ("test_rivals.py", "test_toybox.py") for number in weights}
    for file in (file for folder in ("src", "tests", "tools", "benchmarks") for file in (root / folder).rglob("*.py")):
        numbers = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        large = {n for n in numbers if type(n) is int and n >= FIRST_RESERVED_CONCEPT}
        assert {(file.name, n) for n in large} <= no_seeds, file
    for file in [*(root / "docs").glob("*.md"), *root.glob("*.md"), root / "Makefile"]:
        named = re.findall(r"(?:concept|seed)[ =]+([\d_,]+)", file.read_text())
        assert not [n for n in named if int(re.sub("[_,]", "", n) or 0) >= FIRST_RESERVED_CONCEPT], file
