import random
from dataclasses import replace

import pytest
import torch
from PIL import Image

from infusion.concept import load_concept
from infusion.toybox.backdrop import paint
from infusion.toybox.captions import PLACES, caption
from infusion.toybox.concepts import concept_pictures, write_concept
from infusion.toybox.render import render
from infusion.toybox.scene import BACKGROUNDS, CLASSES, PARTS, concept_scene, individual, sample_scene


def test_a_seed_is_a_scene_and_a_picture():
    assert sample_scene(5) == sample_scene(5) != sample_scene(6)
    first, again = render([sample_scene(5)]).images, render([sample_scene(6), sample_scene(5)]).images[1:]
    torch.testing.assert_close(first, again)
    assert first.min() >= 0 and first.max() <= 1


def test_masks_are_where_the_picture_differs_from_its_backdrop():
    scene = concept_scene(individual(3), 0, "brick wall")
    drawn = render([scene], 32)
    backdrop = paint(scene.background, 64, random.Random(scene.backdrop_seed)).reshape(3, 32, 2, 32, 2).mean((2, 4))
    changed = (drawn.images[0] - backdrop).abs().amax(0)
    mask = drawn.masks[0, 0]
    assert 0.1 < mask.mean() < 0.6
    assert changed[mask == 1].gt(0.02).float().mean() > 0.95
    shadow_free = torch.arange(32)[:, None].expand(32, 32) < 8
    assert changed[(mask == 0) & shadow_free].max() < 0.02


def test_parts_and_depth_agree_with_the_masks():
    drawn = render([sample_scene(seed, num_toys=2) for seed in range(4)])
    solid = drawn.masks.sum(1) > 0.99
    empty = drawn.masks.sum(1) == 0
    assert (drawn.parts[solid] >= 0).all() and drawn.depth[solid].isfinite().all()
    assert (drawn.parts[empty] == -1).all() and drawn.depth[empty].isinf().all()
    assert drawn.parts.max() == len(PARTS) - 1


def test_turning_camera_and_toy_together_changes_nothing():
    scene = concept_scene(individual(1), 0, "snow")
    toy, camera = scene.toys[0], scene.camera
    centred = replace(toy, position=(0.0, 0.0))
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
    columns = torch.arange(64.0)
    first, second = ((m.sum(0) * columns).sum() / m.sum() for m in render([scene]).masks[0])
    if scene.relation != "next to":
        assert (scene.relation == "left of") == (first < second)


def test_captions_say_only_what_is_true():
    rng = random.Random(0)
    for seed in range(300):
        scene = sample_scene(seed)
        text = caption(scene, rng)
        assert all(toy.individual.class_noun in text for toy in scene.toys)
        others = set(CLASSES) - {toy.individual.class_noun for toy in scene.toys}
        assert not any(f" {noun} " in f" {text} " for noun in others)
        for background, phrases in PLACES.items():
            if background != scene.background:
                assert not any(text.endswith(phrase) for phrase in phrases)


def test_mirrored_captions_swap_left_and_right():
    scene = next(s for s in (sample_scene(seed, 2) for seed in range(20)) if s.relation == "left of")
    assert "left of" in caption(scene, random.Random(0))
    assert "right of" in caption(scene, random.Random(0), mirrored=True)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_has_words_and_looks_like_no_other(background):
    def color(name: str, seed: int) -> torch.Tensor:
        return paint(name, 128, random.Random(seed)).mean((1, 2))

    assert PLACES[background]
    mine = color(background, 0)
    nearest_other = min((color(other, 1) - mine).norm() for other in BACKGROUNDS if other != background)
    assert (color(background, 1) - mine).norm() < nearest_other


def test_a_concept_is_one_individual_in_one_place(tmp_path):
    noun = write_concept(4, tmp_path / "toy", num_images=3)
    concept = load_concept(tmp_path / "toy", class_noun=noun)
    assert len(concept.images) == 3 and all(mask is not None for mask in concept.masks)
    assert {image.size for image in concept.images} == {(64, 64)}
    held_out, _ = concept_pictures(4, 2, backgrounds=["beach", "snow"], first=5)
    assert all(isinstance(image, Image.Image) for image in held_out)
    assert held_out[0].tobytes() != concept.images[0].tobytes()
