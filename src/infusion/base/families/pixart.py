"""PixArt-alpha and -sigma: a transformer with cross-attention to a T5 text model."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.families.family import (
    Family,
    TextLayer,
    attention_layers,
    call_default,
    is_cross_attention,
    texts_of,
    tokenized,
)
from infusion.base.prompts import ConceptTokens, Mention, Prompt


class PixArt(Family):
    known_as: ClassVar[str] = "PixArt-alpha and -sigma"
    network_class: ClassVar[str] = "PixArtTransformer2DModel"
    architecture = "pixart"
    masks_text = True

    def text_layers(self, network: nn.Module) -> dict[str, TextLayer]:
        return attention_layers(network, is_cross_attention)

    def tokenize(self, pipeline: Any, prompts: Sequence[Prompt], **options: Any) -> tuple[Tensor, list[ConceptTokens]]:
        length = options.get("max_sequence_length") or call_default(pipeline, "max_sequence_length")
        return tokenized(pipeline.tokenizer, [lowered(prompt) for prompt in prompts], length)

    def encode(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
        token_ids, concept_tokens = self.tokenize(pipeline, prompts)
        states, mask, *_ = pipeline.encode_prompt(texts_of(prompts), do_classifier_free_guidance=False, device=device)
        return Conditioning(states.to(dtype), tuple(concept_tokens), token_ids.to(device), mask)

    def inputs(self, pipeline: Any, noisy_latents: Tensor, timesteps: Tensor, told: Conditioning) -> dict[str, Any]:
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if pipeline.transformer.config.sample_size == 128:  # the models of 1024 px are told sizes
            height, width = (side * pipeline.vae_scale_factor for side in noisy_latents.shape[2:])
            each = torch.ones(len(noisy_latents), 1, dtype=told.text_states.dtype, device=noisy_latents.device)
            sizes = {"resolution": torch.cat([height * each, width * each], 1), "aspect_ratio": height / width * each}
        given = super().inputs(pipeline, noisy_latents, timesteps, told)
        return given | {"encoder_attention_mask": told.attention_mask, "added_cond_kwargs": sizes}


def lowered(prompt: Prompt) -> Prompt:
    """The prompt as these pipelines read it: in small letters, without the spaces around it."""
    text = prompt.text.lower()
    lead = len(text) - len(text.lstrip())

    def at(place: int) -> int:
        return max(0, len(prompt.text[:place].lower()) - lead)

    mentions = tuple(Mention(concept, at(start), at(end)) for concept, start, end in prompt.mentions)
    return Prompt(text.strip(), mentions)
