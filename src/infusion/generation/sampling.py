"""Denoiser + noise -> latents: the step loop."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from infusion.base import Base, Conditioning, Denoiser
from infusion.base.noise_schedule import FLOW


def seeded_noise(
    generators: Sequence[torch.Generator], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """One latent noise per generator, [B, *shape]; an image's noise does not depend on its batch mates."""
    return torch.stack([torch.randn(tuple(shape), generator=generator, dtype=dtype) for generator in generators])


def few_step_scheduler(base: Base) -> Any:
    """DPM-Solver++ (arXiv 2211.01095), which needs few steps; for a flow, the base's own scheduler."""
    if base.noise_schedule.config.prediction_type == FLOW:
        return base.scheduler
    return DPMSolverMultistepScheduler.from_config(base.scheduler.config)


BeforeStep = Callable[[Tensor, Tensor, float], Tensor]
"""(latents, timestep, share of the steps that are done) -> the latents of the step that comes."""


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Tensor,
    conditioning: Conditioning,
    num_inference_steps: int = 30,
    generators: Sequence[torch.Generator] | None = None,
    timestep_options: Mapping[str, Any] | None = None,
    before_step: BeforeStep | None = None,
) -> Tensor:
    """Run a diffusers scheduler from noise to latents, [B, C, H, W].

    Args:
        denoiser: with guidance, a `Guided`.
        scheduler: any diffusers scheduler; a copy is used.
        generators: one per row, for schedulers that draw noise at every step.
        timestep_options: arguments of `scheduler.set_timesteps` beside the number of steps.
        before_step: is called before every step, and may change its latents, by gradients too (`torch.enable_grad`).
    """
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(num_inference_steps, device=noise.device, **(timestep_options or {}))
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    draws = (
        {"generator": list(generators)} if generators and "generator" in signature(scheduler.step).parameters else {}
    )
    for number, timestep in enumerate(scheduler.timesteps):
        if before_step:
            latents = before_step(latents, timestep, number / len(scheduler.timesteps))
        inputs = latents
        if hasattr(scheduler, "scale_model_input"):  # which schedulers of flows lack
            inputs = scheduler.scale_model_input(inputs, timestep)
        prediction = denoiser.predict(inputs, timestep, conditioning)
        latents = scheduler.step(prediction, timestep, latents, **draws, return_dict=False)[0]
    return latents
