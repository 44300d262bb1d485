"""FLUX.1: a transformer in which image and text attend jointly, then in one sequence; a T5, and a CLIP's summary."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.families.family import (
    Family,
    TextLayer,
    attention_layers,
    calculated_shift,
    call_default,
    texts_of,
    tokenized,
)
from infusion.base.families.stable_diffusion_3 import JOINT
from infusion.base.prompts import ConceptTokens, Prompt


class Flux(Family):
    """Latents are [B, 16, H, W] everywhere but in the network, which reads patches of 2 x 2 as [B, H / 2 * W / 2, 64].

    A model with a guidance embedding gets 3.5 by default, also in training. One without was distilled to need none.
    """

    known_as: ClassVar[str] = "FLUX.1"
    network_class: ClassVar[str] = "FluxTransformer2DModel"
    architecture = "flux-1"
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")
    shared_inputs: ClassVar[tuple[str, ...]] = ("txt_ids", "img_ids")

    def text_layers(self, network: nn.Module) -> dict[str, TextLayer]:
        def joint(_path: str, module: nn.Module) -> bool:
            return isinstance(module, FluxAttention) and module.added_kv_proj_dim is not None

        def single(_path: str, module: nn.Module) -> bool:
            return isinstance(module, FluxAttention) and module.added_kv_proj_dim is None

        # in a single block the text stands first in the one sequence that queries, keys and values are made of
        return attention_layers(network, joint, **JOINT) | attention_layers(network, single, borrowed=("to_q", "to_k"))

    def tokenize(self, pipeline: Any, prompts: Sequence[Prompt], **options: Any) -> tuple[Tensor, list[ConceptTokens]]:
        length = options.get("max_sequence_length") or call_default(pipeline, "max_sequence_length")
        return tokenized(pipeline.tokenizer_2, prompts, length)

    def encode(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
        token_ids, concept_tokens = self.tokenize(pipeline, prompts)
        states, pooled, _ = pipeline.encode_prompt(texts_of(prompts), device=device)
        return Conditioning(
            states.to(dtype), tuple(concept_tokens), token_ids.to(device), pooled_states=pooled.to(dtype)
        )

    def inputs(self, pipeline: Any, noisy_latents: Tensor, timesteps: Tensor, told: Conditioning) -> dict[str, Any]:
        from diffusers import FluxPipeline  # which other families need not wait for

        rows, channels, height, width = noisy_latents.shape
        device, dtype = noisy_latents.device, noisy_latents.dtype
        guidance = told.guidance_scale
        if guidance is None and self.has_guidance_embedding(pipeline):
            guidance = torch.full([rows], self.default_guidance_scale(pipeline), device=device)
        given = super().inputs(pipeline, noisy_latents, timesteps, told)
        return given | {
            "hidden_states": FluxPipeline._pack_latents(noisy_latents, rows, channels, height, width),
            "timestep": given["timestep"].to(dtype) / 1000,
            "guidance": guidance,
            "pooled_projections": told.pooled_states,
            "txt_ids": torch.zeros(told.text_states.shape[1], 3, device=device, dtype=dtype),
            "img_ids": FluxPipeline._prepare_latent_image_ids(rows, height // 2, width // 2, device, dtype),
        }

    def prediction(self, output: Tensor, noisy_latents: Tensor) -> Tensor:
        from diffusers import FluxPipeline

        return FluxPipeline._unpack_latents(output, *noisy_latents.shape[2:], vae_scale_factor=1)

    def default_guidance_scale(self, pipeline: Any) -> float:
        return 3.5 if self.has_guidance_embedding(pipeline) else 1.0

    def has_guidance_embedding(self, pipeline: Any) -> bool:
        return bool(pipeline.transformer.config.guidance_embeds)

    def latent_shape(self, pipeline: Any) -> tuple[int, int, int]:
        side = pipeline.default_sample_size
        return pipeline.transformer.config.in_channels // 4, side, side

    def latent_step(self, network: Any) -> int:
        return 2  # the pipeline makes the patches

    def timestep_options(self, scheduler: Any, num_inference_steps: int, shape: Sequence[int]) -> dict[str, Any]:
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        mu = calculated_shift(scheduler, (shape[1] // 2) * (shape[2] // 2), max_shift=1.15)
        return {"sigmas": sigmas, "mu": mu}
