from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from infusion.base import load_base
from infusion.base.denoising import denoising_loss
from infusion.concepts.masks import subject_masks
from infusion.errors import UserError
from infusion.methods.adapter_file import save_adapter
from infusion.methods.dreambooth import DreamBooth
from infusion.methods.infusion import Infusion
from infusion.methods.textual_inversion import TextualInversion
from infusion.training.dataset import TrainingSet, step_generator, training_set
from infusion.training.loop import train
from infusion.training.settings import TrainingSettings


def run(base, concept, method, settings=None, checkpoint_path=None, stop_after=None):
    adapter = method.adapter(base, concept)
    losses = []
    training = train(base, adapter, concept, settings, checkpoint_path)
    for progress in training:
        losses.append(progress.loss)
        if progress.step == stop_after:
            training.close()
    return adapter, losses


def tensors(adapter):
    return torch.cat([p.detach().flatten() for p in adapter.parameters()])


@pytest.mark.parametrize("streams", ["dual", "single", "mixed"])
@pytest.mark.slow
def test_it_learns(base, concept, streams):
    method = Infusion(streams=streams, max_train_steps=30, learning_rate=0.05)
    adapter = method.adapter(base, concept)
    data = training_set(base, concept, subject_masks(base, concept), flip=True)

    @torch.no_grad()
    def held_out_loss():
        with base.customized(adapter) as denoiser:
            return float(denoising_loss(base, denoiser, data.batch(64, step_generator(99, 0))))

    before = held_out_loss()
    for _ in train(base, adapter, concept):
        pass
    assert held_out_loss() < before


@pytest.mark.parametrize("stop_after", [2, 3])
def test_resumed_training_ends_at_the_same_bytes(base, concept, tmp_path, stop_after):
    method = Infusion(max_train_steps=6, streams="mixed")
    settings = TrainingSettings(checkpointing_steps=2)
    checkpoint = tmp_path / "run.checkpoint.safetensors"
    expected, losses = run(base, concept, method, settings)
    _, first_losses = run(base, concept, method, settings, checkpoint, stop_after)
    resumed, last_losses = run(base, concept, method, settings, checkpoint)
    assert first_losses + last_losses == losses
    assert torch.equal(tensors(resumed), tensors(expected))


def test_a_checkpoint_of_another_training_is_refused(base, concept, tmp_path):
    checkpoint = tmp_path / "run.checkpoint.safetensors"
    run(base, concept, Infusion(max_train_steps=2), checkpoint_path=checkpoint)
    for method, settings in (
        (Infusion(max_train_steps=3), None),
        (Infusion(max_train_steps=2), TrainingSettings(seed=5)),
    ):
        with pytest.raises(UserError, match="another base, images or settings"):
            run(base, concept, method, settings, checkpoint)
    with pytest.raises(UserError, match="another base, images or settings"):
        run(base, replace(concept, images=concept.images[::-1]), Infusion(max_train_steps=2), None, checkpoint)


def test_class_pictures_drawn_anew_may_differ_in_the_last_bit(base, concept, tmp_path):
    method, checkpoint = DreamBooth(max_train_steps=2, learning_rate=1e-5), tmp_path / "run.checkpoint.safetensors"
    latents = torch.ones(2, 4, 8, 8)

    def steps(latents, stop_after):
        training = train(base, method.adapter(base, concept), concept, None, checkpoint, class_latents=latents)
        done = []
        for now in training:
            if now.step == stop_after:
                training.close()
                break
            done.append(now.step)
        return done

    steps(latents, stop_after=1)
    assert steps(latents.nextafter(2 * latents), stop_after=None) == [2]
    with pytest.raises(UserError, match="another base, images or settings"):
        steps(latents[:1], stop_after=None)


def test_who_learns_pictures_whole_needs_no_masks(base, concept, monkeypatch):
    monkeypatch.setattr("infusion.training.loop.subject_masks", lambda *given: pytest.fail("masks were made"))
    adapter, losses = run(base, concept, TextualInversion(max_train_steps=2))
    assert len(losses) == 2
    again = TextualInversion(max_train_steps=2).adapter(base, concept)
    masks = subject_masks(base, concept)
    assert [now.loss for now in train(base, again, concept, masks=masks)] == losses
    assert torch.equal(tensors(again), tensors(adapter))


def test_a_damaged_checkpoint_is_refused(base, concept, tmp_path):
    (tmp_path / "c.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="cannot be read"):
        run(base, concept, Infusion(max_train_steps=2), checkpoint_path=tmp_path / "c.safetensors")


def test_the_loss_looks_only_inside_the_mask(base, concept):
    data = training_set(base, concept, subject_masks(base, concept), flip=False)
    batch = data.batch(2, step_generator(0, 0))
    shifted = replace(batch, noise=batch.noise + 100 * (batch.masks == 0))

    class Fixed:
        def predict(self, noisy_latents, timesteps, conditioning):
            return torch.zeros_like(noisy_latents)

    assert denoising_loss(base, Fixed(), batch) == denoising_loss(base, Fixed(), shifted) > 0


def test_gradient_accumulation_counts_every_picture(base, concept):
    settings = TrainingSettings(train_batch_size=2, gradient_accumulation_steps=3)
    adapter = Infusion(max_train_steps=1).adapter(base, concept)
    progress = next(train(base, adapter, concept, settings))
    assert progress.step == progress.max_train_steps == 1


def test_captions_replace_templates(base, concept):
    captioned = replace(concept, captions=("a cat on a mat", None, "<my-cat>"))
    data = training_set(base, captioned, subject_masks(base, captioned), flip=False)
    assert isinstance(data, TrainingSet)
    assert [len(prompts) for prompts in data.prompts_of] == [1, 11, 1]
    assert all("my-cat" in row for row in data.conditioning.concept_tokens)


def test_pictures_without_masks_get_the_bases_attention(base, concept):
    masks = subject_masks(base, replace(concept, masks=(None, *concept.masks[1:])))
    assert [mask.source for mask in masks] == ["attention", "given", "given"]
    assert masks[0].image.size == (16, 16)
    assert 0 < masks[0].coverage < 1
    assert masks[1].coverage == pytest.approx(0.25 * 3.14 / 4, abs=0.06)


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_training_does_not_depend_on_the_scheduler_that_samples(base, concept, scheduler):
    expected, losses = run(base, concept, Infusion(max_train_steps=2))
    other = replace(base, scheduler=scheduler.from_config(base.scheduler.config))
    adapter, other_losses = run(other, concept, Infusion(max_train_steps=2))
    assert other_losses == losses
    assert torch.equal(tensors(adapter), tensors(expected))


def test_divergence_is_told(base, concept):
    broken = replace(concept, images=concept.images)
    base.network.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="diverged at step 1"):
        run(base, broken, Infusion(max_train_steps=2))


def test_velocity_bases_train_too(concept, tmp_path):
    from conftest import tiny_pipeline

    tiny_pipeline(prediction_type="v_prediction").save_pretrained(tmp_path)
    base = load_base(tmp_path, device="cpu")
    adapter, losses = run(base, concept, Infusion(max_train_steps=2))
    assert len(losses) == 2
    assert save_adapter(adapter, tmp_path / "a.safetensors", base) > 0
