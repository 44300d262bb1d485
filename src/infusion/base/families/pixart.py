"""PixArt-alpha and -sigma: a transformer with cross-attention to a T5 text model."""

from collections.abc import Sequence
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.families.family import Family, TextLayer, attention_layers, is_cross_attention, texts_of
from infusion.prompts import ConceptTokens, Mention, Prompt, tokenize


class PixArt(Family):
    architecture: ClassVar[str] = "pixart"

    def text_layers(self, network: nn.Module) -> dict[str, TextLayer]:
        return attention_layers(network, is_cross_attention)

    def concept_tokens(self, pipeline: Any, prompts: Sequence[Prompt], **options: Any) -> list[ConceptTokens]:
        limit = options.get("max_sequence_length") or _default_length(pipeline)
        return tokenize(pipeline.tokenizer, [lowered(prompt) for prompt in prompts], limit)[1]

    def encode(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
        states, mask, *_ = pipeline.encode_prompt(
            texts_of(prompts), do_classifier_free_guidance=False, device=device, max_sequence_length=_default_length(pipeline)
        )
        return Conditioning(states.to(dtype), tuple(self.concept_tokens(pipeline, prompts)), attention_mask=mask)

    def inputs(self, pipeline: Any, noisy_latents: Tensor, timesteps: Tensor, told: Conditioning) -> dict[str, Any]:
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if pipeline.transformer.config.sample_size == 128:  # the models of 1024 px are told sizes
            height, width = (side * pipeline.vae_scale_factor for side in noisy_latents.shape[2:])
            rows = len(noisy_latents)
            like = {"dtype": told.text_states.dtype, "device": noisy_latents.device}
            sizes["resolution"] = torch.tensor([[height, width]], **like).repeat(rows, 1)
            sizes["aspect_ratio"] = torch.tensor([[height / width]], **like).repeat(rows, 1)
        mask = {"encoder_attention_mask": told.attention_mask, "added_cond_kwargs": sizes}
        return super().inputs(pipeline, noisy_latents, timesteps, told) | mask


def lowered(prompt: Prompt) -> Prompt:
    """The prompt as these pipelines read it: in small letters, without the spaces around it."""
    text = prompt.text.lower()
    lead = len(text) - len(text.lstrip())

    def at(place: int) -> int:
        return max(0, len(prompt.text[:place].lower()) - lead)

    mentions = tuple(Mention(concept, at(start), at(end)) for concept, start, end in prompt.mentions)
    return Prompt(text.strip(), mentions)


def _default_length(pipeline: Any) -> int:
    """Tokens of a prompt: 120 for alpha, 300 for sigma."""
    return signature(type(pipeline).encode_prompt).parameters["max_sequence_length"].default
