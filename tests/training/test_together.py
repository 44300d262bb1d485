"""Concepts trained together learn what each would alone."""

import math
from dataclasses import replace
from itertools import count

import pytest
import torch
from conftest import picture

from infusion.base import load_base, rank_form
from infusion.errors import UserError
from infusion.methods.infusion import Infusion
from infusion.methods.textual_inversion import TextualInversion
from infusion.training.loop import Diverged, Progress, train
from infusion.training.settings import TrainingSettings
from infusion.training.together import Job, train_together

# Of the residuals' length. AdamW divides gradients by their own size, which enlarges the rounding of those near 0; with
# the network in double precision nothing is left of it.
TOLERANCE, TOLERANCE_FP32 = 1e-7, 1e-5


@pytest.fixture
def base(base_dir):
    return load_base(base_dir, "cpu", torch.float64)


def job(base, concept, name, method=None, **settings):
    """A concept of one image, in the colour that is its name."""
    image, mask = picture(name)
    learnt = replace(
        concept, name=name, images=(image,), masks=(mask,), captions=(None,), sources=("1",), mask_sources=("given",)
    )
    adapter = (method or Infusion(max_train_steps=20)).adapter(base, learnt)
    return Job(adapter, learnt, TrainingSettings(**{"train_batch_size": 2} | settings))


def residuals(job):
    return torch.cat([parameter.detach().flatten() for parameter in job.adapter.parameters()])


def alone(base, job):
    """The residuals that `train` gives the job."""
    adapter = job.adapter.method.adapter(base, job.concept)
    losses = [now.loss for now in train(base, adapter, job.concept, job.settings, crop=job.crop)]
    return torch.cat([parameter.detach().flatten() for parameter in adapter.parameters()]), losses


def progress(now):
    assert isinstance(now, Progress), now
    return now


def assert_as_alone(base, jobs, told, tolerance=TOLERANCE):
    for one in jobs:
        expected, losses = alone(base, one)
        assert float((residuals(one) - expected).norm() / expected.norm()) < tolerance
        assert [now.loss for other, now in told if other is one] == pytest.approx(losses, rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, TOLERANCE), (torch.float32, TOLERANCE_FP32)])
@pytest.mark.slow
def test_each_learns_what_it_would_alone(base_dir, concept, dtype, tolerance):
    base = load_base(base_dir, "cpu", dtype)
    jobs = [job(base, concept, name, seed=seed) for seed, name in enumerate(("red", "blue", "green"))]
    told = list(train_together(base, jobs))
    assert_as_alone(base, jobs, told, tolerance)
    assert len({tuple(residuals(one).tolist()) for one in jobs}) == 3


@pytest.mark.slow
def test_jobs_of_different_settings_join_and_leave(base, concept):
    captioned = job(base, concept, "gold", Infusion(max_train_steps=3, learning_rate=0.02), lr_scheduler="cosine")
    captioned = replace(captioned, concept=replace(captioned.concept, captions=("a cat on a mat",)))
    jobs = [
        job(base, concept, "red", Infusion(max_train_steps=5), gradient_accumulation_steps=3, train_batch_size=1),
        job(base, concept, "blue", Infusion(max_train_steps=2, masked_loss=False), flip=False),
        captioned,
        job(base, concept, "green", Infusion(max_train_steps=4), train_batch_size=3),
    ]
    told = list(train_together(base, jobs, concepts_per_batch=2))
    order = [(other.concept.name, progress(now).step) for other, now in told]
    assert order[:4] == [("red", 1), ("blue", 1), ("red", 2), ("blue", 2)]
    assert order[4:6] == [("red", 3), ("gold", 1)]
    assert order[-1] == ("green", 4)
    assert_as_alone(base, jobs, told)


@pytest.mark.parametrize("others", ["single", "mixed"])
@pytest.mark.slow
def test_rows_keep_their_own_kind_of_maps(base, concept, others):
    jobs = [
        job(base, concept, "red", Infusion(max_train_steps=4, streams=others)),
        job(base, concept, "blue", Infusion(max_train_steps=4)),
        job(base, concept, "green", Infusion(max_train_steps=4, keys=True)),
        job(base, concept, "gold", Infusion(max_train_steps=4, streams="mixed"), seed=7),
    ]
    assert_as_alone(base, jobs, list(train_together(base, jobs)))


def test_pictures_of_several_shapes(base, concept):
    jobs = [job(base, concept, name, Infusion(max_train_steps=3)) for name in ("red", "blue", "green")]
    wide = replace(jobs[0].concept, images=tuple(image.resize((32, 16)) for image in jobs[0].concept.images))
    wide = replace(wide, masks=tuple(mask.resize((32, 16)) for mask in wide.masks))
    jobs[0] = replace(jobs[0], concept=wide, crop="buckets")
    assert_as_alone(base, jobs, list(train_together(base, jobs)))


def test_all_rows_take_the_short_way(base, concept, monkeypatch):
    turned = []
    directions = rank_form.directions

    def noted(attention, vectors):
        turned.append(vectors)
        return directions(attention, vectors)

    monkeypatch.setattr(rank_form, "directions", noted)
    jobs = [job(base, concept, name, Infusion(max_train_steps=1)) for name in ("red", "blue", "green")]
    list(train_together(base, jobs))
    assert len(turned) == len(base.text_layers)
    assert {len(vectors) for vectors in turned} == {3}


def test_jobs_are_taken_when_there_is_room(base, concept):
    taken = []

    def endless():
        for number in count():
            taken.append(number)
            yield job(base, concept, ("red", "blue", "green")[number % 3], Infusion(max_train_steps=1))

    steps = train_together(base, endless(), concepts_per_batch=2)
    assert [next(steps)[0].concept.name for _ in range(5)] == ["red", "blue", "green", "red", "blue"]
    assert len(taken) == 6
    steps.close()


def test_interrupted_training_goes_on(base, concept, tmp_path):
    def jobs():
        some = [
            job(base, concept, "red", Infusion(max_train_steps=4)),
            job(base, concept, "blue", Infusion(max_train_steps=2)),
        ]
        return [replace(one, checkpoint_path=tmp_path / f"{one.concept.name}.checkpoint.safetensors") for one in some]

    told = []
    steps = train_together(base, jobs())
    for one, now in steps:
        told.append((one.concept.name, progress(now).step))
        if told[-1] == ("blue", 2):
            break
    steps.close()
    again = jobs()
    rest = list(train_together(base, again))
    blue = progress(next(now for one, now in rest if one is again[1]))
    assert blue.step == 2 and math.isnan(blue.loss)
    assert told + [(one.concept.name, progress(now).step) for one, now in rest if one is again[0]] == [
        *[("red", 1), ("blue", 1), ("red", 2), ("blue", 2)],
        *[("red", 3), ("red", 4)],
    ]
    for one in again:
        expected, _ = alone(base, one)
        assert float((residuals(one) - expected).norm() / expected.norm()) < TOLERANCE


def test_who_cannot_be_trained_leaves_with_a_sentence(base, concept):
    fine = job(base, concept, "red", Infusion(max_train_steps=2))
    namesake = job(base, concept, "red", Infusion(max_train_steps=2))
    other_method = job(base, concept, "blue", TextualInversion(max_train_steps=2))
    no_noun = job(base, concept, "green", Infusion(max_train_steps=2))
    no_noun = replace(no_noun, concept=replace(no_noun.concept, captions=("a dog",)))
    jobs = [fine, namesake, other_method, no_noun]
    told = list(train_together(base, jobs))
    sentences = {id(one): str(now) for one, now in told if isinstance(now, UserError)}
    assert 'are called "red"; give one another name' in sentences[id(namesake)]
    assert "trained one by one: train <blue> alone" in sentences[id(other_method)]
    assert 'The caption "a dog" holds neither' in sentences[id(no_noun)]
    assert [progress(now).step for one, now in told if one is fine] == [1, 2]


def test_who_diverges_leaves_the_others_in_peace(base, concept):
    broken = job(base, concept, "red", Infusion(max_train_steps=3))
    fine = job(base, concept, "blue", Infusion(max_train_steps=3))
    next(broken.adapter.parameters()).data.fill_(math.nan)
    told = list(train_together(base, [broken, fine]))
    assert isinstance(told[0][1], Diverged) and "diverged at step 1" in str(told[0][1])
    assert all(isinstance(now, Progress) and one is fine for one, now in told[1:])
    expected, _ = alone(base, fine)
    assert float((residuals(fine) - expected).norm() / expected.norm()) < TOLERANCE


def test_each_has_its_own_masks(base, concept):
    """Whether the first of a batch is learnt whole says nothing of the others."""

    def losses(*masked: bool) -> dict[bool, float]:
        methods = {one: Infusion(max_train_steps=1, masked_loss=one) for one in masked}
        jobs = [job(base, concept, ("red", "blue")[one], method) for one, method in methods.items()]
        found = {}
        for one, now in train_together(base, jobs):
            assert isinstance(now, Progress)
            found[one.adapter.method.masked_loss] = now.loss
        return found

    expected = losses(False) | losses(True)
    assert losses(False, True) == pytest.approx(expected, rel=1e-5)
    assert losses(True, False) == pytest.approx(expected, rel=1e-5)
