"""Stable Diffusion XL: a UNet with cross-attention to two CLIP text models, told pooled states and sizes beside."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.families.family import Family, TextLayer, attention_layers, is_cross_attention, texts_of
from infusion.errors import UserError
from infusion.prompts import ConceptTokens, Prompt, tokenize


class StableDiffusionXL(Family):
    architecture: ClassVar[str] = "stable-diffusion-xl-v1-base"
    network: ClassVar[str] = "unet"
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")

    def text_layers(self, network: nn.Module) -> dict[str, TextLayer]:
        return attention_layers(network, is_cross_attention)

    def concept_tokens(self, pipeline: Any, prompts: Sequence[Prompt], **options: Any) -> list[ConceptTokens]:
        """The states of both text models stand side by side, so their tokens must agree."""
        first, second = (tokenize(tokenizer, prompts)[1] for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2))
        if first != second:
            raise UserError("The two text models of this base cut its class nouns into different tokens.")
        return first

    def encode(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        states, _, pooled, _ = pipeline.encode_prompt(
            texts_of(prompts), device=pipeline.unet.device, do_classifier_free_guidance=False
        )
        return self._told(pipeline, prompts, states, pooled)

    def encode_negative(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        """An empty prompt is told as zeros where the pipeline's configuration says so."""
        if pipeline.config.force_zeros_for_empty_prompt and not any(texts_of(prompts)):
            told = self.encode(pipeline, prompts)
            return self._told(pipeline, prompts, torch.zeros_like(told.text_states), torch.zeros_like(told.pooled_states))
        return self.encode(pipeline, prompts)

    def _told(self, pipeline: Any, prompts: Sequence[Prompt], states: Tensor, pooled: Tensor) -> Conditioning:
        ids = tokenize(pipeline.tokenizer, prompts)[0].input_ids.to(states.device)
        dtype = pipeline.unet.dtype
        tokens = tuple(self.concept_tokens(pipeline, prompts))
        return Conditioning(states.to(dtype), tokens, ids, pooled_states=pooled.to(dtype))

    def inputs(self, pipeline: Any, noisy_latents: Tensor, timesteps: Tensor, told: Conditioning) -> dict[str, Any]:
        height, width = (side * pipeline.vae_scale_factor for side in noisy_latents.shape[2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=told.text_states.dtype)
        time_ids = sizes.to(noisy_latents.device).repeat(len(noisy_latents), 1)
        return {
            "sample": noisy_latents,
            "timestep": timesteps,
            "encoder_hidden_states": told.text_states,
            "added_cond_kwargs": {"text_embeds": told.pooled_states, "time_ids": time_ids},
        }
