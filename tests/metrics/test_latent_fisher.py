"""The latent Fisher divergence, our definition, against closed forms."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from infusion.base import Conditioning
from infusion.errors import UserError
from infusion.metrics.latent_fisher import (
    Probe,
    eps_predictions,
    latent_fisher_divergence,
    outside_subject,
    stratified_timesteps,
)

T = 10


def schedule(**values):
    given = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"} | values
    return DDPMScheduler(**given)


@dataclass
class Shrinking:
    """Sees eps = z_t / 2 + offset, and tells it as eps or as v; a row's text shifts it by the mean of its states."""

    schedule: Any
    offset: Tensor | float = 0.0

    def predict(self, noisy_latents, timesteps, conditioning):
        eps = noisy_latents / 2 + self.offset + conditioning.text_states.mean(dim=(1, 2))[:, None, None, None]
        if self.schedule.config.prediction_type == "epsilon":
            return eps
        abar = self.schedule.alphas_cumprod[timesteps][:, None, None, None]
        sigma = (1 - abar).sqrt()
        z_0 = (noisy_latents - sigma * eps) / abar.sqrt()
        return abar.sqrt() * eps - sigma * z_0


def probe_of(num_prompts=3, per_prompt=2, weights=None):
    num = num_prompts * per_prompt
    latents = torch.randn(num, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return Probe(latents, torch.arange(num) // per_prompt, weights)


def told_states(states):
    ids = torch.zeros(states.shape[:2], dtype=torch.long)
    return Conditioning(text_states=states, concept_tokens=({},) * len(states), token_ids=ids)


def told(num, value=0.0):
    return told_states(torch.full((num, 5, 3), value))


def divergence(offset, probe=None, noise=None, seed=0, guidance=1.0):
    probe, noise = probe or probe_of(), noise or schedule()
    num = len(probe.latents)
    eps_0 = eps_predictions(Shrinking(noise), noise, probe, told(num, guidance), T, seed)
    eps_th = eps_predictions(Shrinking(noise, offset), noise, probe, told(num, guidance), T, seed)
    eps_empty = eps_predictions(Shrinking(noise), noise, probe, told(num), T, seed)
    timesteps = stratified_timesteps(noise, probe, T, seed)
    return latent_fisher_divergence(eps_0, eps_th, eps_empty, probe, noise, timesteps)


def test_a_constant_error_is_its_square():
    found = divergence(offset=0.3, guidance=0.6)
    assert found.eps.shape == found.kl.shape == (3,)
    np.testing.assert_allclose(found.eps, 0.09, rtol=1e-5)
    np.testing.assert_allclose(found.guidance, 0.36, rtol=1e-5)
    np.testing.assert_allclose(found.relative, 0.25, rtol=1e-5)
    figure = found.figures()["eps"]
    assert figure.value == pytest.approx(0.09) and figure.num == 3


def test_no_change_is_zero_exactly():
    found = divergence(offset=0.0)
    assert not found.eps.any() and not found.kl.any() and found.guidance.all()


@pytest.mark.parametrize("num_train_timesteps", [T, 1000])
def test_the_kl_weight_is_the_sum_over_the_schedule(num_train_timesteps):
    """Of a constant error c it is sum_t beta_t / (2 sigma_t^2) c^2 d; with one timestep in each stratum, exactly."""
    noise = schedule(num_train_timesteps=num_train_timesteps)
    found = divergence(offset=0.3, probe=probe_of(per_prompt=1 if num_train_timesteps == T else 60), noise=noise)
    expected = (noise.betas / (2 * (1 - noise.alphas_cumprod))).sum().item() * 0.09 * 4 * 8 * 8
    np.testing.assert_allclose(found.kl, expected, rtol=1e-4 if num_train_timesteps == T else 0.2)


def test_velocity_and_noise_are_one_model():
    probe, both = probe_of(), []
    for prediction_type in ("epsilon", "v_prediction"):
        noise = schedule(prediction_type=prediction_type)
        both.append(eps_predictions(Shrinking(noise, 0.1), noise, probe, told(6), T))
    torch.testing.assert_close(*both, atol=1e-4, rtol=1e-4)
    found = divergence(offset=0.3, noise=schedule(prediction_type="v_prediction"))
    np.testing.assert_allclose(found.eps, 0.09, rtol=1e-3)


def test_nothing_depends_on_the_batch_and_all_on_the_seed():
    noise, probe = schedule(), probe_of()
    one, two, other = (
        eps_predictions(Shrinking(noise), noise, probe, told(6), T, seed, batch_size)
        for seed, batch_size in ((0, 7), (0, 60), (1, 60))
    )
    assert one.shape == (6, T, 4, 8, 8) and one.dtype == torch.float32
    assert torch.equal(one, two) and not torch.allclose(one, other)
    first = Probe(probe.latents[:2], probe.prompt_of[:2])
    assert torch.equal(eps_predictions(Shrinking(noise), noise, first, told(2), T), one[:2])


def test_every_row_is_told_its_own_prompt():
    noise, probe = schedule(), probe_of()
    states = torch.arange(6.0)[:, None, None].expand(6, 5, 3)
    with_text = eps_predictions(Shrinking(noise), noise, probe, told_states(states), T, batch_size=7)
    without = eps_predictions(Shrinking(noise), noise, probe, told(6), T)
    shift = (with_text - without).mean(dim=(2, 3, 4))
    torch.testing.assert_close(shift, torch.arange(6.0)[:, None].expand(6, T), atol=1e-4, rtol=1e-4)


class Clock:
    """Sees the time."""

    def predict(self, noisy_latents, timesteps, conditioning):
        return timesteps[:, None, None, None].expand(noisy_latents.shape)


def test_predictions_are_of_the_timesteps_told():
    noise, probe = schedule(), probe_of()
    timesteps = stratified_timesteps(noise, probe, T, seed=3)
    eps = eps_predictions(Clock(), noise, probe, told(6), T, seed=3, batch_size=7)
    assert (eps == timesteps[:, :, None, None, None]).all()


def test_timesteps_are_one_in_each_stratum():
    timesteps = stratified_timesteps(schedule(), probe_of(), T, seed=0)
    assert timesteps.shape == (6, T)
    assert (timesteps // 100 == torch.arange(T)).all()
    assert len(set((timesteps % 100).flatten().tolist())) > 20
    assert torch.equal(stratified_timesteps(schedule(num_train_timesteps=T), probe_of(), T, 0)[3], torch.arange(T))


def test_latents_are_noised_as_in_training():
    """Of a pure z_0 the noise added is of unit variance, in the share that the schedule tells."""
    noise, probe = schedule(), replace(probe_of(), latents=torch.zeros(6, 4, 8, 8))
    noisy = 2 * eps_predictions(Shrinking(noise), noise, probe, told(6), T)
    sigma = (1 - noise.alphas_cumprod[stratified_timesteps(noise, probe, T, 0)]).sqrt()
    ratio = noisy.std(dim=(2, 3, 4)) / sigma
    assert (ratio - 1).abs().max() < 0.2
    assert ratio.mean().item() == pytest.approx(1, abs=0.02)


def test_only_what_has_weight_counts():
    offset = torch.zeros(8, 8)
    offset[:, :4] = 0.5  # an error inside the subject alone
    weights = (offset == 0).float().expand(6, 1, 8, 8)
    plain, outside = divergence(offset), divergence(offset, probe_of(weights=weights))
    np.testing.assert_allclose(plain.eps, 0.125, rtol=1e-4)
    assert not outside.eps.any() and not outside.kl.any()
    inside, everywhere = divergence(offset, probe_of(weights=1 - weights)), divergence(0.5)
    np.testing.assert_allclose(inside.eps, 0.25, rtol=1e-4)
    np.testing.assert_allclose(inside.kl, everywhere.kl, rtol=1e-4)  # the weighted mean times all elements


def test_a_cell_that_the_subject_touches_is_not_outside():
    masks = torch.zeros(2, 64, 64)
    masks[0, 9, 17] = 1
    weights = outside_subject(masks, (8, 8))
    assert weights.shape == (2, 1, 8, 8)
    assert weights[0, 0, 1, 2] == 0 and weights[0].sum() == 63 and weights[1].min() == 1


def test_prompts_are_told_apart():
    """An error in the second prompt's latents alone is the second prompt's."""
    offset = torch.zeros(6, 1, 1, 1)
    offset[2:4] = 0.4
    noise, probe = schedule(), probe_of()
    eps_0 = eps_predictions(Shrinking(noise), noise, probe, told(6), T)
    timesteps = stratified_timesteps(noise, probe, T, 0)
    eps_th = eps_0 + offset[:, None]
    found = latent_fisher_divergence(eps_0, eps_th, eps_0 + 2, probe, noise, timesteps)
    np.testing.assert_allclose(found.eps, [0, 0.16, 0], atol=1e-6)
    figures = found.figures()
    assert figures["eps"].value == pytest.approx(0.16 / 3)
    assert figures["relative"].value == pytest.approx(0.16 / 3 / 4)
    assert figures["relative"].low == pytest.approx(0, abs=1e-6)
    assert figures["relative"].high == pytest.approx(0.16 / 4)


def test_what_cannot_be_compared_is_refused_in_a_sentence():
    probe = probe_of()
    for noise, num in ((schedule(prediction_type="sample"), T), (schedule(num_train_timesteps=5), T), (schedule(), 0)):
        with pytest.raises(UserError, match=r"\w"):
            eps_predictions(Shrinking(noise), noise, probe, told(6), num)


@torch.no_grad()
def test_a_real_model_is_at_the_floor_in_any_batch_and_off_it_when_customized(base, adapter):
    probe = Probe(torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1]))
    nouns = {"my-cat": "cat"}
    concept, empty = (base.encode([text] * 4, nouns) for text in ("a photo of a <my-cat>", ""))
    noise = base.noise_schedule
    eps_0, again = (eps_predictions(base, noise, probe, concept, 4, batch_size=size) for size in (3, 16))
    eps_empty = eps_predictions(base, noise, probe, empty, 4)
    with base.customized(adapter) as denoiser:
        eps_th = eps_predictions(denoiser, noise, probe, concept, 4)
        untold = eps_predictions(denoiser, noise, probe, empty, 4)
    timesteps = stratified_timesteps(noise, probe, 4, 0)
    floor = latent_fisher_divergence(eps_0, again, eps_empty, probe, noise, timesteps)
    off = latent_fisher_divergence(eps_0, eps_th, eps_empty, probe, noise, timesteps)
    assert floor.eps.max() < 1e-10
    assert off.eps.min() > 1e3 * floor.eps.max()
    assert torch.equal(untold, eps_empty)  # the concept is not named: no difference, by construction
