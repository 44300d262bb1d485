"""Noisy latents, timesteps, conditioning -> prediction: the one signature that training, sampling and metrics call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from infusion.prompts import ConceptTokens


@dataclass(frozen=True)
class Conditioning:
    """What a batch of B rows is told.

    text_states: [B, T, C]. concept_tokens: per row, the token positions of every concept the row names. token_ids and
    attention_mask: [B, T], what the text model read; the mask is None where the model is given none. states_by_layer:
    [B, T, C] by the path of a cross-attention layer that is told something else than `text_states`.
    """

    text_states: Tensor
    concept_tokens: tuple[ConceptTokens, ...]
    token_ids: Tensor
    attention_mask: Tensor | None = None
    states_by_layer: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.concept_tokens)

    def rows(self, indices: Sequence[int]) -> "Conditioning":
        """The conditioning of the given rows, in that order; a row may be taken several times."""
        at = torch.as_tensor(indices, device=self.text_states.device)
        return Conditioning(
            self.text_states[at],
            tuple(self.concept_tokens[i] for i in indices),
            self.token_ids[at],
            None if self.attention_mask is None else self.attention_mask[at],
            {path: states[at] for path, states in self.states_by_layer.items()},
        )


def concatenate(first: Conditioning, second: Conditioning) -> Conditioning:
    """The rows of `first`, then those of `second`; neither is told anything by layer."""
    assert not first.states_by_layer and not second.states_by_layer
    masks = [rows.attention_mask for rows in (first, second) if rows.attention_mask is not None]
    return Conditioning(
        torch.cat([first.text_states, second.text_states]),
        first.concept_tokens + second.concept_tokens,
        torch.cat([first.token_ids, second.token_ids]),
        torch.cat(masks) if masks else None,
    )


class Denoiser(Protocol):
    """Anything that predicts from noisy latents: a base model, or a base model customized by adapters."""

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy_latents [B, C, H, W], timesteps [B] or scalar -> prediction [B, C, H, W] of the base's own type."""
        ...
