"""Images that keep their shape, and squares that stay what they were."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from infusion.base.latents import square
from infusion.concepts.crop import bucket_sizes, cropped, training_size
from infusion.concepts.masks import subject_masks
from infusion.errors import UserError
from infusion.methods import METHODS
from infusion.methods.infusion import Infusion
from infusion.training.dataset import BucketedSet, TrainingSet, step_generator, training_set
from infusion.training.loop import train
from infusion.training.settings import TrainingSettings

SIZES = ((16, 16), (40, 30), (20, 60))  # of a square, a wide and a tall image


@pytest.fixture
def shapes(concept):
    """The concept, its images in three shapes; the second one's mask is to be found."""
    images = tuple(image.resize(size) for image, size in zip(concept.images, SIZES, strict=True))
    masks = (concept.masks[0], None, concept.masks[2].resize(SIZES[2]))
    return replace(concept, images=images, masks=masks, mask_sources=("given", None, "given"))


@pytest.mark.parametrize(("size_px", "step_px"), [(512, 64), (768, 64), (64, 16), (16, 4)])
def test_buckets_are_shapes_of_about_the_square_s_area(size_px, step_px):
    sizes = bucket_sizes(size_px, step_px)
    assert sizes[0] == (size_px, size_px) and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert (height, width) in sizes and width % step_px == height % step_px == 0
        assert size_px**2 / 2 <= width * height <= size_px**2
        assert 1 / 4 <= width / height <= 4


def test_stable_diffusion_s_buckets():
    assert bucket_sizes(512, 64)[:5] == [(512, 512), (448, 576), (576, 448), (384, 640), (640, 384)]


def test_a_picture_goes_to_the_nearest_bucket(base):
    assert (base.size_px, base.step_px) == (16, 4)
    sizes = [training_size(size, base, "buckets") for size in ((100, 100), (40, 30), (30, 40), (20, 60), (9, 999))]
    assert sizes == [(16, 16), (20, 12), (12, 20), (8, 24), (8, 32)]


def test_the_middle_is_seen_and_nothing_is_squashed(base):
    image = Image.linear_gradient("L").resize((120, 40))
    assert cropped(image, base, "square").tobytes() == square(image, 16).tobytes()
    assert cropped(image, base, "buckets").tobytes() == image.resize((24, 8), Image.Resampling.LANCZOS).tobytes()
    with pytest.raises(UserError, match=r'crop = "bucket" is not one of square, buckets. Did you mean "buckets"'):
        cropped(image, base, "bucket")


def test_a_batch_is_of_one_shape_and_every_picture_is_as_likely(base, shapes):
    data = training_set(base, shapes, subject_masks(base, shapes, "buckets"), True, crop="buckets")
    assert isinstance(data, BucketedSet)
    encoded = [one.latents[torch.arange(len(one.latents))] for one in data.sets]
    assert [tuple(latents.shape) for latents in encoded] == [(2, 4, 8, 8), (2, 4, 6, 10), (2, 4, 12, 4)]
    assert [tuple(one.masks.shape) for one in data.sets] == [(2, 1, 8, 8), (2, 1, 6, 10), (2, 1, 12, 4)]
    weights = [1, 2, 3]
    uneven = BucketedSet(
        [
            replace(
                one,
                latents=latents[:1].repeat(n, 1, 1, 1),
                masks=one.masks[:1].repeat(n, 1, 1, 1),
                prompts_of=[one.prompts_of[0]] * n,
            )
            for one, latents, n in zip(data.sets, encoded, weights, strict=True)
        ]
    )
    drawn = [uneven.batch(1, step_generator(0, step)).latents.shape[-1] for step in range(600)]
    assert [drawn.count(width) / 100 for width in (8, 10, 4)] == pytest.approx(weights, abs=0.3)
    batch = data.batch(3, step_generator(0, 1))
    assert batch.latents.shape == batch.noise.shape and batch.latents.shape[-2:] == batch.masks.shape[-2:]


def test_pictures_of_one_shape_are_drawn_as_squares_are(base, concept):
    left = Image.new("L", (16, 16))
    left.paste(255, (0, 0, 8, 16))
    masks = subject_masks(base, replace(concept, masks=(left, *concept.masks[1:])))
    squares, bucketed = (training_set(base, concept, masks, True, crop=crop) for crop in ("square", "buckets"))
    assert isinstance(squares, TrainingSet) and isinstance(bucketed, TrainingSet)
    of_left, of_right = bucketed.masks[0], bucketed.masks[3]  # an image's and its mirror image's
    torch.testing.assert_close(of_left.flip(-1), of_right)
    assert not torch.allclose(of_left, of_right)
    one, other = (some.batch(4, step_generator(0, 0)) for some in (squares, bucketed))
    for name in ("latents", "masks", "noise", "timesteps"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_captions_and_masks_stay_with_their_pictures(base, shapes):
    captioned = replace(shapes, captions=("a cat", None, "the cat"))
    masks = subject_masks(base, captioned, "buckets")
    assert [mask.source for mask in masks] == ["given", "attention", "given"]
    assert [mask.image.size for mask in masks] == [(16, 16), (20, 12), (8, 24)]
    data = training_set(base, captioned, masks, True, crop="buckets")
    assert isinstance(data, BucketedSet)
    assert [len(one.prompts_of[0]) for one in data.sets] == [1, 11, 1]
    assert data.sets[0].prompts_of == [[11], [11]] and data.sets[2].prompts_of == [[12], [12]]
    with pytest.raises(UserError, match='not of the crop "square"'):
        training_set(base, captioned, masks, True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_pictures_of_several_shapes(base, shapes, method):
    settings: dict[str, Any] = {"num_class_images": 2} if METHODS[method].prior_preservation_weight else {}
    adapter = METHODS[method](max_train_steps=4, **settings).adapter(base, shapes)
    before = [parameter.detach().clone() for parameter in adapter.parameters()]
    steps = list(train(base, adapter, shapes, TrainingSettings(train_batch_size=2), crop="buckets"))
    assert len(steps) == 4
    assert any((new != old).any() for new, old in zip(adapter.parameters(), before, strict=True))


def test_a_training_goes_on_with_its_own_crop_only(base, shapes, tmp_path):
    method, checkpoint = Infusion(max_train_steps=2), tmp_path / "run.checkpoint.safetensors"

    def step(crop):
        training = train(base, method.adapter(base, shapes), shapes, None, checkpoint, crop=crop)
        now = next(training)
        training.close()
        return now.step

    assert [step("buckets"), step("buckets")] == [1, 2]
    with pytest.raises(UserError, match="another base, images or settings"):
        step("square")
