"""Noisy latents, timesteps, conditioning -> prediction: the one signature that training, sampling and metrics call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from infusion.base.prompts import ConceptTokens


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of a batch of B rows.

    text_states: [B, T, C], in the network's precision. concept_tokens: per row, where in the text states every concept
    stands that the row names. token_ids: [B, T], what the text model read (the first, of several). attention_mask:
    [B, T], None where the model is given none. pooled_states: [B, C'], where the network takes a summary of the prompt
    beside its tokens. guidance_scale: [B], where the network has an embedding of how strongly to follow the prompt.
    states_by_layer: [B, T, C] by the path of a cross-attention layer that is told something else than `text_states`.
    """

    text_states: Tensor
    concept_tokens: tuple[ConceptTokens, ...]
    token_ids: Tensor
    attention_mask: Tensor | None = None
    pooled_states: Tensor | None = None
    guidance_scale: Tensor | None = None
    states_by_layer: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.concept_tokens)

    def rows(self, indices: Sequence[int]) -> "Conditioning":
        """The conditioning of the given rows, in that order; a row may be taken several times."""
        at = torch.as_tensor(indices, device=self.text_states.device)
        return replace(
            self,
            text_states=self.text_states[at],
            concept_tokens=tuple(self.concept_tokens[i] for i in indices),
            states_by_layer={path: states[at] for path, states in self.states_by_layer.items()},
            token_ids=self.token_ids[at],
            **{name: None if value is None else value[at] for name, value in self._optional().items()},
        )

    def _optional(self) -> dict[str, Tensor | None]:
        """What not every model takes."""
        return {name: getattr(self, name) for name in ("attention_mask", "pooled_states", "guidance_scale")}


def concatenate(*parts: Conditioning) -> Conditioning:
    """The rows of all parts, in order; none has conditioning by layer."""
    assert not any(part.states_by_layer for part in parts)
    optional: dict[str, Any] = {}
    for name in parts[0]._optional():
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        optional[name] = torch.cat(values) if len(values) == len(parts) else None
    return Conditioning(
        torch.cat([part.text_states for part in parts]),
        tuple(tokens for part in parts for tokens in part.concept_tokens),
        torch.cat([part.token_ids for part in parts]),
        **optional,
    )


class Denoiser(Protocol):
    """Anything that predicts from noisy latents: a base model, or a base model customized by adapters."""

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """noisy_latents [B, C, H, W], timesteps [B] or scalar -> prediction [B, C, H, W] of the base's own type."""
        ...
