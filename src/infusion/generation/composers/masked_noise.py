"""Each concept predicts inside its own mask and the base everywhere else, so that adapters of any methods compose.

The masks are the base's attention to the words of each concept, in the step itself: where the map of a concept is above
half of its largest value, and above every other concept's. A step costs one pass for the base and one for each concept.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infusion.base import Base, Conditioning
from infusion.base.cross_attention import AttentionRecorder
from infusion.base.customization import Named
from infusion.errors import UserError

_SHARPNESS = 10.0  # of the soft edge of a mask, in units of its map's largest value


@dataclass
class MaskedNoise:
    """The base and the adapters that are named; none is applied between two calls."""

    base: Base
    adapters: Sequence[Named]

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        mask = conditioning.attention_mask if self.base.family.masks_text else None
        with AttentionRecorder(self.base.network, mask) as recorder:
            prediction = self.base.predict(noisy_latents, timesteps, conditioning)
        if not self.adapters:
            return prediction
        maps = torch.stack([self._map(recorder, adapter, conditioning, noisy_latents) for adapter in self.adapters])
        masks = concept_masks(maps).to(prediction)  # [K, B, 1, H, W]
        changes = torch.zeros_like(prediction)
        for adapter, own in zip(self.adapters, masks, strict=True):
            rows = [n for n, tokens in enumerate(conditioning.concept_tokens) if tokens.keys() & adapter.spoken.keys()]
            if rows:
                at = torch.tensor(rows, device=prediction.device)
                steps = timesteps[at] if timesteps.ndim else timesteps
                with self.base.customized(adapter) as denoiser:
                    found = denoiser.predict(noisy_latents[at], steps, conditioning.rows(rows))
                changes = changes.index_add(0, at, own[at] * (found - prediction[at]))
        return prediction + changes

    def before_step(self, latents: Tensor, timestep: Tensor, done: float) -> Tensor:
        return latents

    @staticmethod
    def _map(recorder: AttentionRecorder, adapter: Named, conditioning: Conditioning, latents: Tensor) -> Tensor:
        """The base's attention to what names the adapter's concepts, [B, H, W]; 0 in rows that do not."""
        named = [
            [at for concept in tokens.keys() & adapter.spoken.keys() for at in tokens[concept]]
            for tokens in conditioning.concept_tokens
        ]
        return recorder.token_map(named, *latents.shape[-2:])


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
        for adapter in adapters:
            adapter.check_fits(base)
        yield MaskedNoise(base, adapters)


COMPOSER = _MaskedNoise()
