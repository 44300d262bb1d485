"""Denoiser + noise -> latents: guidance and the step loop."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from infusion.base import Base, Conditioning, Denoiser, concatenate
from infusion.base.noise_schedule import FLOW


def seeded_noise(
    generators: Sequence[torch.Generator], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """One latent noise per generator, [B, *shape]; a picture's noise does not depend on its batch mates."""
    return torch.stack([torch.randn(tuple(shape), generator=generator, dtype=dtype) for generator in generators])


def few_step_scheduler(base: Base) -> Any:
    """DPM-Solver++ (arXiv 2211.01095), which needs few steps; for a flow, the base's own scheduler."""
    if base.noise_schedule.config.prediction_type == FLOW:
        return base.scheduler
    return DPMSolverMultistepScheduler.from_config(base.scheduler.config)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning | None = None,
    guidance_scale: float = 1.0,
    num_inference_steps: int = 30,
    generators: Sequence[torch.Generator] | None = None,
    timestep_options: Mapping[str, Any] | None = None,
    before_step: Callable[[float], None] | None = None,
) -> Tensor:
    """Run a diffusers scheduler from noise to latents, [B, C, H, W].

    Args:
        scheduler: any diffusers scheduler; a copy is used.
        unconditional: B rows that classifier-free guidance moves away from; with None there is no guidance.
        guidance_scale: prediction = unconditional + guidance_scale * (conditional - unconditional).
        generators: one per row, for schedulers that draw noise at every step.
        timestep_options: arguments of `scheduler.set_timesteps` beside the number of steps.
        before_step: told before every call of the denoiser which share of the calls is done.
    """
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(num_inference_steps, device=noise.device, **(timestep_options or {}))
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    draws = (
        {"generator": list(generators)} if generators and "generator" in signature(scheduler.step).parameters else {}
    )
    guided = unconditional is not None and guidance_scale > 1
    rows = concatenate(unconditional, conditioning) if guided else conditioning  # type: ignore[arg-type]
    for number, timestep in enumerate(scheduler.timesteps):
        if before_step:
            before_step(number / len(scheduler.timesteps))
        inputs = torch.cat([latents, latents]) if guided else latents
        if hasattr(scheduler, "scale_model_input"):  # which schedulers of flows lack
            inputs = scheduler.scale_model_input(inputs, timestep)
        prediction = denoiser.predict(inputs, timestep, rows)
        if guided:
            away, towards = prediction.chunk(2)
            prediction = away + guidance_scale * (towards - away)
        latents = scheduler.step(prediction, timestep, latents, **draws, return_dict=False)[0]
    return latents
