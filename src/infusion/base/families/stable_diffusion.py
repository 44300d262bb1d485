"""Stable Diffusion 1.x and 2.x: a UNet with cross-attention to one CLIP text model."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.families.family import Family, TextLayer, attention_layers, is_cross_attention, tokenized
from infusion.base.prompts import ConceptTokens, Prompt, tokenize


class StableDiffusion(Family):
    """architecture: "stable-diffusion-v1" or "-v2", distinguished by the width of the text states."""

    known_as: ClassVar[str] = "Stable Diffusion 1.x and 2.x"
    network_class: ClassVar[str] = "UNet2DConditionModel"
    network: ClassVar[str] = "unet"

    @classmethod
    def fits(cls, pipeline: Any, network: Any) -> bool:
        two = any(getattr(pipeline, part, None) is not None for part in ("text_encoder_2", "tokenizer_2"))
        return not two and super().fits(pipeline, network)

    @classmethod
    def of(cls, network: Any) -> "StableDiffusion":
        return cls(network.config.cross_attention_dim)

    def __init__(self, cross_attention_dim: int) -> None:
        self.architecture = f"stable-diffusion-v{2 if cross_attention_dim == 1024 else 1}"

    def text_layers(self, network: nn.Module) -> dict[str, TextLayer]:
        return attention_layers(network, is_cross_attention)

    def tokenize(self, pipeline: Any, prompts: Sequence[Prompt], **options: Any) -> tuple[Tensor, list[ConceptTokens]]:
        return tokenized(pipeline.tokenizer, prompts)

    def encode(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        encoded, concept_tokens = tokenize(pipeline.tokenizer, prompts)
        masked = getattr(pipeline.text_encoder.config, "use_attention_mask", False)
        device = pipeline.unet.device
        token_ids = encoded.input_ids.to(device)
        mask = encoded.attention_mask.to(device) if masked else None
        return Conditioning(self.read_tokens(pipeline, token_ids, mask), tuple(concept_tokens), token_ids, mask)

    def read_tokens(self, pipeline: Any, token_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Text states [B, T, C] of token ids [B, T]."""
        return pipeline.text_encoder(token_ids, attention_mask=attention_mask)[0].to(pipeline.unet.dtype)

    def inputs(self, pipeline: Any, noisy_latents: Tensor, timesteps: Tensor, told: Conditioning) -> dict[str, Any]:
        return {"sample": noisy_latents, "timestep": timesteps, "encoder_hidden_states": told.text_states}
