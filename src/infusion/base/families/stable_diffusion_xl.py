"""Stable Diffusion XL: a UNet with cross-attention to two CLIP text models, pooled states and sizes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.families.family import Family, TextLayer, attention_layers, is_cross_attention, texts_of, tokenized
from infusion.base.prompts import ConceptTokens, Prompt
from infusion.errors import UserError


class StableDiffusionXL(Family):
    known_as: ClassVar[str] = "Stable Diffusion XL"
    network_class: ClassVar[str] = "UNet2DConditionModel"
    architecture = "stable-diffusion-xl-v1-base"
    network: ClassVar[str] = "unet"
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")

    @classmethod
    def fits(cls, pipeline: Any, network: Any) -> bool:
        two = any(getattr(pipeline, part, None) is not None for part in ("text_encoder_2", "tokenizer_2"))
        return two and super().fits(pipeline, network)

    def text_layers(self, network: nn.Module) -> dict[str, TextLayer]:
        return attention_layers(network, is_cross_attention)

    def tokenize(self, pipeline: Any, prompts: Sequence[Prompt], **options: Any) -> tuple[Tensor, list[ConceptTokens]]:
        return tokenized_alike(pipeline, prompts)

    def encode(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        device, dtype = pipeline.unet.device, pipeline.unet.dtype
        token_ids, concept_tokens = self.tokenize(pipeline, prompts)
        states, _, pooled, _ = pipeline.encode_prompt(
            texts_of(prompts), device=device, do_classifier_free_guidance=False
        )
        return Conditioning(
            states.to(dtype), tuple(concept_tokens), token_ids.to(device), pooled_states=pooled.to(dtype)
        )

    def encode_negative(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        """Empty prompts are zeros where the pipeline's configuration says so."""
        told = self.encode(pipeline, prompts)
        if not pipeline.config.force_zeros_for_empty_prompt or any(texts_of(prompts)):
            return told
        assert told.pooled_states is not None
        zeros = torch.zeros_like(told.text_states), torch.zeros_like(told.pooled_states)
        return replace(told, text_states=zeros[0], pooled_states=zeros[1])

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


def tokenized_alike(pipeline: Any, prompts: Sequence[Prompt]) -> tuple[Tensor, list[ConceptTokens]]:
    """Tokens of two CLIP text models whose states stand side by side, so that they must agree.

    Raises:
        UserError: they do not.
    """
    ids, first = tokenized(pipeline.tokenizer, prompts)
    if tokenized(pipeline.tokenizer_2, prompts)[1] != first:
        raise UserError("The two CLIP text models of this base cut its class nouns into different tokens.")
    return ids, first
