"""A denoiser + a batch of clean latents and noise -> how far its prediction is from what it should be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infusion.base.denoiser import Conditioning, Denoiser, concatenate
from infusion.base.noise_schedule import training_target

if TYPE_CHECKING:
    from infusion.base.model import Base


@dataclass(frozen=True)
class Batch:
    """B training rows: latents [B, C, H, W], masks [B, 1, H, W] in [0, 1], noise, timesteps [B], conditioning."""

    latents: Tensor
    masks: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Conditioning

    def rows(self, indices: Sequence[int]) -> "Batch":
        """The batch of these rows alone."""
        at = torch.as_tensor(indices, device=self.latents.device)
        tensors = (self.latents[at], self.masks[at], self.noise[at], self.timesteps[at])
        return Batch(*tensors, self.conditioning.rows(indices))

    @staticmethod
    def joined(batches: Sequence["Batch"]) -> "Batch":
        """The rows of all batches, which are of one shape, in order."""
        names = ("latents", "masks", "noise", "timesteps")
        tensors = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
        return Batch(**tensors, conditioning=concatenate(*(batch.conditioning for batch in batches)))


def denoising_loss(base: "Base", denoiser: Denoiser, batch: Batch, masked: bool = True) -> Tensor:
    """Mean over all elements of the squared error of prediction and target; masked: both times the subject mask."""
    return squared_error(base, denoiser, batch, masked).mean()


def squared_error(base: "Base", denoiser: Denoiser, batch: Batch, masked: bool = True) -> Tensor:
    """[B, C, H, W] between prediction and target; masked: both times the subject mask.

    The target is the base's own kind of prediction: the noise, the velocity or the flow.
    """
    noisy_latents = base.noise_schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = training_target(base.noise_schedule, batch.latents, batch.noise, batch.timesteps)
    error = denoiser.predict(noisy_latents, batch.timesteps, batch.conditioning).float() - target
    return (error * batch.masks if masked else error).square()
