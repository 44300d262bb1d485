"""A denoiser -> a denoiser that classifier-free guidance moves towards the prompts (arXiv 2207.12598)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from infusion.base import Conditioning, Denoiser, concatenate


@dataclass
class Guided:
    """prediction = unconditional + scale * (conditional - unconditional); one call of `denoiser` for both.

    unconditional: one row, or one for each row of the batch.
    """

    denoiser: Denoiser
    unconditional: Conditioning
    scale: float
    _rows: tuple[Conditioning, Conditioning] | None = field(default=None, init=False, repr=False)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        rows = self._both(conditioning)
        if timesteps.ndim:
            timesteps = torch.cat([timesteps, timesteps])
        away, towards = self.denoiser.predict(torch.cat([noisy_latents, noisy_latents]), timesteps, rows).chunk(2)
        return away + self.scale * (towards - away)

    def _both(self, conditioning: Conditioning) -> Conditioning:
        """The rows of both, made once for the conditioning that a sampler gives at every step."""
        if self._rows is None or self._rows[0] is not conditioning:
            away = self.unconditional
            away = away.rows([0] * len(conditioning)) if len(away) == 1 else away
            self._rows = conditioning, concatenate(away, conditioning)
        return self._rows[1]
