"""Two denoisers, latents of the base -> how far apart their scores are: our definition of the latent Fisher divergence.

What the base believes of a prompt it was never asked to change is compared with what the customized model believes.
With z_t = sqrt(abar_t) z_0 + sigma_t eps, sigma_t^2 = 1 - abar_t, and the score s = -eps_hat / sigma_t,

    F_t(c) = E_{z_t ~ p_t^0(.|c)} ||s_0 - s_th||^2 = sigma_t^-2 E ||eps_0(z_t, t, c) - eps_th(z_t, t, c)||^2
    LFD_w  = E_c E_t w(t) F_t(c)

where 0 is the base and th the customized model. Every model is asked about the same (z_0, eps, t), so that the mean of
squares is unbiased and two equal models are at 0 up to rounding.

Two cautions wherever a figure is shown. A method that acts on its concept's token alone is at exactly 0 on every prompt
without the concept, by construction: that tests its code and is no win over others. And distance between scores is not
calibrated to the quality of images (arXiv 2606.06179): show a distance between samples beside it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from infusion.base import Conditioning, Denoiser
from infusion.base.noise_schedule import FLOW
from infusion.errors import UserError
from infusion.intervals import Figure, bootstrap, mean
from infusion.metrics.metric import AGNOSTIC, KL, RELATIVE, Evidence, Measure, Metric, Need


@dataclass(frozen=True)
class Probe:
    """Where models are compared: latents drawn from the base once, for one set of prompts.

    latents: z_0 [N, C, H, W], drawn from the base for each latent's prompt, scaled as the denoiser expects them.
    prompt_of: [N] which of the P prompts 0..P-1; each has some latents.
    weights: [N, 1, H, W] in [0, 1], or None for 1 everywhere; differences are weighted means (`outside_subject`).

    Sets of prompts that ask other questions (unrelated ones, sibling classes, the class noun, the concept) are probes
    of their own and are never averaged together.
    """

    latents: Tensor
    prompt_of: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.latents.ndim == 4 and len(self.prompt_of) == len(self.latents) > 0
        assert (torch.bincount(self.prompt_of) > 0).all(), "a prompt has no latents"
        if self.weights is not None:
            assert self.weights.shape == (len(self.latents), 1, *self.latents.shape[2:])
            assert (self.weights.sum(dim=(1, 2, 3)) > 0).all(), "a latent counts nowhere"


def outside_subject(masks: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """Masks of the subject [N, H, W] in [0, 1] -> weights [N, 1, h, w]: 0 in a latent cell that the subject touches."""
    return 1 - F.adaptive_max_pool2d(masks[:, None].float(), latent_size)


# ------------------------------------------------------------------------------------------------- predictions


def _draw(schedule: Any, latent: Tensor, num_timesteps: int, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Timesteps [T], one in each of T equal strata, and noise [T, C, H, W] of one latent."""
    generator = torch.Generator().manual_seed(100_003 * seed + number)
    within = torch.rand(num_timesteps, generator=generator, dtype=torch.float64)
    stratum = schedule.config.num_train_timesteps / num_timesteps
    timesteps = ((torch.arange(num_timesteps) + within) * stratum).long()
    noise = torch.randn((num_timesteps, *latent.shape), generator=generator)
    return timesteps.clamp(max=schedule.config.num_train_timesteps - 1), noise


def _draws(schedule: Any, probe: Probe, num_timesteps: int, seed: int) -> tuple[Tensor, Tensor]:
    drawn = [_draw(schedule, latent, num_timesteps, seed, number) for number, latent in enumerate(probe.latents)]
    timesteps, noise = zip(*drawn, strict=True)
    return torch.stack(timesteps), torch.stack(noise)


def stratified_timesteps(noise_schedule: Any, probe: Probe, num_timesteps: int, seed: int) -> Tensor:
    """The timesteps [N, T] that `eps_predictions` asks about: of each latent, one in each of T equal strata."""
    return _draws(noise_schedule, probe, num_timesteps, seed)[0]


def _as_eps(prediction: Tensor, noisy: Tensor, schedule: Any, timesteps: Tensor) -> Tensor:
    """The noise that a prediction of any kind sees in z_t.

    v = sqrt(abar) eps - sigma z_0 (Salimans and Ho, arXiv 2202.00512) gives eps = sqrt(abar) v + sigma z_t; a flow
    u = eps - z_0 at z_t = (1 - s) z_0 + s eps gives eps = z_t + (1 - s) u.
    """
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return prediction
    if kind == FLOW:
        return noisy + (1 - schedule.levels(timesteps, noisy)) * prediction
    abar = schedule.alphas_cumprod.cpu().float()[timesteps][:, None, None, None]
    return abar.sqrt() * prediction + (1 - abar).sqrt() * noisy


@torch.no_grad()
def eps_predictions(
    denoiser: Denoiser,
    noise_schedule: Any,
    probe: Probe,
    conditioning: Conditioning,
    num_timesteps: int = 20,
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """The noise that a denoiser sees in the probe's latents, [N, T, C, H, W] in float32 on the CPU.

    Noise and timesteps follow from `seed` and the latent's number alone: they are the same for every denoiser and every
    batch size. The base's predictions may be kept and compared with those of many customized models.

    Args:
        noise_schedule: `Base.noise_schedule`.
        conditioning: one row per latent, without guidance.
        num_timesteps: T, the number of strata of the schedule.

    Raises:
        UserError: the base predicts neither noise, velocity nor flow, or the schedule has fewer than T timesteps.
    """
    config = noise_schedule.config
    if config.prediction_type not in ("epsilon", "v_prediction", FLOW):
        raise UserError(
            f'A base of prediction type "{config.prediction_type}" has no score; use epsilon, v_prediction or a flow.'
        )
    if not 0 < num_timesteps <= config.num_train_timesteps:
        raise UserError(f"Compare at 1 to {config.num_train_timesteps} timesteps; {num_timesteps} were asked for.")
    assert len(conditioning) == len(probe.latents)
    device = conditioning.text_states.device
    timesteps, noise = _draws(noise_schedule, probe, num_timesteps, seed)  # [N, T], [N, T, C, H, W]
    eps = torch.empty_like(noise)
    for rows in torch.arange(timesteps.numel()).split(batch_size):
        latent, step = rows // num_timesteps, rows % num_timesteps
        t = timesteps[latent, step]
        noisy = noise_schedule.add_noise(probe.latents[latent].float().cpu(), noise[latent, step], t)
        told = conditioning.rows(latent.tolist())
        prediction = denoiser.predict(noisy.to(device), t.to(device), told).float().cpu()
        eps[latent, step] = _as_eps(prediction, noisy, noise_schedule, t)
    return eps


# ------------------------------------------------------------------------------------------------- divergence


@dataclass(frozen=True)
class LatentFisher:
    """The divergence for each of P prompts, our definition.

    eps: [P], w(t) = sigma_t^2, per latent element: the mean square between predictions of the noise (of unit variance).
    kl: [P], w(t) = beta_t / 2 summed over the training timesteps, in nats: up to the terminal term an upper bound of
        KL(p^0 || p^th) (Song et al., arXiv 2101.09258, theorem 1).
    guidance: [P], the mean square between the base's predictions with the prompt and with the empty prompt.
    """

    eps: np.ndarray
    kl: np.ndarray
    guidance: np.ndarray

    @property
    def relative(self) -> np.ndarray:
        """[P]: `eps` in units of what the prompt itself changes in the base."""
        return self.eps / self.guidance

    def figures(self) -> dict[str, Figure]:
        """Means over the prompts, with intervals over prompts; "relative" is the ratio of the means."""
        both = np.stack([self.eps, self.guidance], axis=1)
        relative = bootstrap(lambda some: float(some[:, 0].mean() / some[:, 1].mean()), both)
        return {"eps": mean(self.eps), "kl": mean(self.kl), "relative": relative}


def _mean_square(one: Tensor, other: Tensor, weights: Tensor | None) -> Tensor:
    """Mean square of the differences [N, T, C, H, W], weighted where there are weights [N, 1, H, W]: [N, T]."""
    square = (one - other).square().mean(dim=2)  # [N, T, H, W]
    if weights is None:
        return square.mean(dim=(2, 3))
    weights = weights.to(square)
    return (square * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3))


def _kl_weights(noise_schedule: Any, timesteps: Tensor) -> Tensor:
    """w(t) / sigma_t^2 = beta_t / (2 sigma_t^2) times the number of training timesteps, [N, T].

    A flow is the diffusion of g(s)^2 = 2 s / (1 - s), for which it is 1 / (s (1 - s)); at its ends, where that is
    infinite, s is kept one timestep away from 0 and 1.
    """
    if noise_schedule.config.prediction_type == FLOW:
        total = noise_schedule.config.num_train_timesteps
        level = (timesteps.double() / total).clamp(1 / total, 1 - 1 / total)
        return 1 / (level * (1 - level))
    abar = noise_schedule.alphas_cumprod.cpu().double()
    beta = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
    return (len(abar) * beta / (2 * (1 - abar)))[timesteps]


def latent_fisher_divergence(
    eps_0: Tensor, eps_th: Tensor, eps_empty: Tensor, probe: Probe, noise_schedule: Any, timesteps: Tensor
) -> LatentFisher:
    """The divergence of a customized model from its base, prompt by prompt.

    Args:
        eps_0, eps_th, eps_empty: [N, T, C, H, W], `eps_predictions` of the base, of the customized model and of the
            base under the empty prompt, of one probe and seed.
        timesteps: [N, T] of the same seed, `stratified_timesteps`.

    With weights, the sum over elements in `kl` is the weighted mean times the number of elements.
    """
    assert eps_0.shape == eps_th.shape == eps_empty.shape and eps_0.shape[:2] == timesteps.shape
    num_elements = eps_0[0, 0].numel()
    between = _mean_square(eps_0, eps_th, probe.weights).double()  # [N, T]
    guidance = _mean_square(eps_0, eps_empty, probe.weights)
    kl = num_elements * between * _kl_weights(noise_schedule, timesteps)
    return LatentFisher(*(_per_prompt(values, probe.prompt_of) for values in (between, kl, guidance)))


def _per_prompt(values: Tensor, prompt_of: Tensor) -> np.ndarray:
    """Means of values [N, T] over the latents of each prompt and the timesteps, [P]."""
    at = prompt_of.cpu().numpy()
    return np.bincount(at, values.mean(dim=1).numpy()) / np.bincount(at)


# --------------------------------------------------------------------------------------------------- the metric


@dataclass(frozen=True)
class Predictions:
    """What the base and a customized model predict at one probe: what `latent_fisher_divergence` takes."""

    eps_0: Tensor
    eps_th: Tensor
    eps_empty: Tensor
    probe: Probe
    noise_schedule: Any
    timesteps: Tensor


def _compute(evidence: Evidence) -> dict[str, Figure]:
    assert evidence.predict
    found = {}
    for name, at in evidence.predict().items():
        divergence = latent_fisher_divergence(
            at.eps_0, at.eps_th, at.eps_empty, at.probe, at.noise_schedule, at.timesteps
        )
        for kind, figure in divergence.figures().items():
            found[f"lfd_{name}" if kind == "eps" else f"lfd_{name}_{kind}"] = figure
    return found


_PROBES = {
    "s1": ("S1 unrelated", "prompts without the concept and without its class"),
    "s2": ("S2 siblings", "prompts with sibling classes"),
    "s3": ("S3 class noun", "prompts with the class noun, the concept off"),
    "s4": ("S4 other content", "prompts with the concept in other content, measured outside the subject"),
}
_KINDS = (
    (
        "",
        "",
        "Latent Fisher divergence on {}: how far the predicted noise moved from the base model's, mean of squares per "
        "element.",
        AGNOSTIC,
    ),
    (
        "_relative",
        ", relative",
        "The divergence on {}, over how far the base model's prediction moves when the prompt is left out.",
        RELATIVE,
    ),
    (
        "_kl",
        ", KL weight",
        "The divergence on {}, weighted to bound the Kullback-Leibler divergence, up to the terminal term.",
        KL,
    ),
)
METRIC = Metric(
    tuple(
        Measure(f"lfd_{probe}{kind}", label + of, sentence.format(where), "lower", group, place=10, unchanged=0.0)
        for kind, of, sentence, group in _KINDS
        for probe, (label, where) in _PROBES.items()
    ),
    frozenset({Need.PREDICTIONS}),
    _compute,
)
