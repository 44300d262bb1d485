"""Each concept predicts inside its own mask and the base everywhere else, so that adapters of any methods compose.

The masks are the base's attention to the words of each concept, in the step itself: where the map of a concept is above
half of its largest value, and above every other concept's. A step costs one pass for the base and one for each concept.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infusion.base import Base, Conditioning
from infusion.base.cross_attention import AttentionRecorder, cross_attentions
from infusion.base.customization import Edited, Named
from infusion.base.prompts import ConceptTokens
from infusion.errors import UserError

_SHARPNESS = 10.0  # of the soft edge of a mask, in units of its map's largest value


@dataclass
class MaskedNoise:
    """The base, and each adapter's edits with the names of its concepts; none is applied between two calls."""

    base: Base
    edited: Sequence[tuple[Edited, Collection[str]]]

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        mask = conditioning.attention_mask if self.base.family.masks_text else None
        with AttentionRecorder(self.base.network, mask) as recorder:
            prediction = self.base.predict(noisy_latents, timesteps, conditioning)
        if not self.edited:
            return prediction
        named = [[_tokens(row, names) for row in conditioning.concept_tokens] for _, names in self.edited]
        masks = concept_masks(recorder.token_maps(named, *noisy_latents.shape[-2:])).to(prediction)  # [K, B, 1, H, W]
        changes = torch.zeros_like(prediction)
        for (edits, _), tokens, own in zip(self.edited, named, masks, strict=True):
            rows = [row for row, there in enumerate(tokens) if there]
            if rows:
                at = torch.tensor(rows, device=prediction.device)
                steps = timesteps[at] if timesteps.ndim else timesteps
                with self.base.customized(edits) as denoiser:
                    found = denoiser.predict(noisy_latents[at], steps, conditioning.rows(rows))
                changes = changes.index_add(0, at, own[at] * (found - prediction[at]))
        return prediction + changes

    def before_step(self, latents: Tensor, timestep: Tensor, done: float) -> Tensor:
        return latents


def _tokens(row: ConceptTokens, names: Collection[str]) -> list[int]:
    """Where a row names one of these concepts."""
    return [at for concept in row if concept in names for at in row[concept]]


def concept_masks(maps: Tensor) -> Tensor:
    """Maps [K, B, H, W] of K concepts -> masks [K, B, 1, H, W] in [0, 1], whose sum is at most 1 everywhere."""
    largest = maps.amax(dim=(2, 3), keepdim=True)
    relative = torch.where(largest > 0, maps / largest.clamp(min=1e-12), -1)
    rivals = torch.cat([relative, torch.full_like(relative[:1], 0.5)])  # the base, half-way
    masks = torch.softmax(_SHARPNESS * rivals, dim=0)[:-1]
    return torch.where(largest > 0, masks, 0)[:, :, None]


class _MaskedNoise:
    @contextmanager
    def composed(
        self, base: Base, adapters: Sequence[Named], conditioning: Conditioning, conditions: Sequence[Any] = ()
    ) -> Iterator[MaskedNoise]:
        if conditions:
            raise UserError(f"The composer masked-noise takes no conditions, and {len(conditions)} were given.")
        if not cross_attentions(base.network):
            raise UserError(
                f'In "{base.id}" image and text attend jointly, so its attention cannot say where a concept is: the '
                "composer masked-noise is for models with cross-attention."
            )
        for adapter in adapters:
            adapter.check_fits(base)
        edited = [(Edited(one.concept_name, one.edits(base)), one.spoken.keys()) for one in adapters]
        yield MaskedNoise(base, edited)


COMPOSER = _MaskedNoise()
