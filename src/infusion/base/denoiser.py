"""Noisy latents, timesteps, conditioning -> prediction: the one signature that training, sampling and metrics call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from infusion.prompts import ConceptTokens


@dataclass(frozen=True)
class Conditioning:
    """What a batch of B rows is told.

    text_states: [B, T, C]. concept_tokens: per row, the token positions of every concept the row names.
    """

    text_states: Tensor
    concept_tokens: tuple[ConceptTokens, ...]

    def __len__(self) -> int:
        return len(self.concept_tokens)

    def rows(self, indices: Sequence[int]) -> "Conditioning":
        """The conditioning of the given rows, in that order; a row may be taken several times."""
        at = torch.as_tensor(indices, device=self.text_states.device)
        return Conditioning(self.text_states[at], tuple(self.concept_tokens[i] for i in indices))


def concatenate(first: Conditioning, second: Conditioning) -> Conditioning:
    """The rows of `first`, then those of `second`."""
    states = torch.cat([first.text_states, second.text_states])
    return Conditioning(states, first.concept_tokens + second.concept_tokens)


class Denoiser(Protocol):
    """Anything that predicts from noisy latents: a base model, or a base model customized by adapters."""

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy_latents [B, C, H, W], timesteps [B] or scalar -> prediction [B, C, H, W] of the base's own type."""
        ...
