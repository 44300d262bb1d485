"""Stable Diffusion 3 and 3.5: a transformer in which image and text attend jointly; two CLIP text models and a T5."""

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.families.family import (
    Family,
    TextLayer,
    attention_layers,
    calculated_shift,
    call_default,
    joined,
    shifted,
    texts_of,
    tokenized,
)
from infusion.base.families.stable_diffusion_xl import tokenized_alike
from infusion.base.prompts import ConceptTokens, Prompt

JOINT: dict[str, Any] = {
    "borrowed": ("to_q", "to_k", "add_q_proj", "add_k_proj"),
    "keys": "add_k_proj",
    "values": "add_v_proj",
}


class StableDiffusion3(Family):
    known_as: ClassVar[str] = "Stable Diffusion 3 and 3.5"
    network_class: ClassVar[str] = "SD3Transformer2DModel"
    architecture = "stable-diffusion-3"
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2", "tokenizer_3")

    optional_parts = ("tokenizer_3",)

    def text_layers(self, network: nn.Module) -> dict[str, TextLayer]:
        def joint(_path: str, module: nn.Module) -> bool:
            return isinstance(module, Attention) and module.added_kv_proj_dim is not None

        return attention_layers(network, joint, **JOINT)

    def tokenize(self, pipeline: Any, prompts: Sequence[Prompt], **options: Any) -> tuple[Tensor, list[ConceptTokens]]:
        """A noun stands twice: in the states of the CLIP models, side by side, and in those of the T5 after them."""
        ids, concept_tokens = tokenized_alike(pipeline, prompts)
        if pipeline.text_encoder_3 is None:
            return ids, concept_tokens
        length = options.get("max_sequence_length") or call_default(pipeline, "max_sequence_length")
        third = tokenized(pipeline.tokenizer_3, prompts, length)[1]
        return ids, joined(concept_tokens, shifted(third, pipeline.tokenizer_max_length))

    def encode(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
        token_ids, concept_tokens = self.tokenize(pipeline, prompts)
        states, _, pooled, _ = pipeline.encode_prompt(
            *[texts_of(prompts)] * 3, device=device, do_classifier_free_guidance=False
        )
        return Conditioning(
            states.to(dtype), tuple(concept_tokens), token_ids.to(device), pooled_states=pooled.to(dtype)
        )

    def inputs(self, pipeline: Any, noisy_latents: Tensor, timesteps: Tensor, told: Conditioning) -> dict[str, Any]:
        return super().inputs(pipeline, noisy_latents, timesteps, told) | {"pooled_projections": told.pooled_states}

    def timestep_options(self, scheduler: Any, num_inference_steps: int, shape: Sequence[int]) -> dict[str, Any]:
        if not scheduler.config.get("use_dynamic_shifting"):
            return {}
        patch = 2
        return {"mu": calculated_shift(scheduler, (shape[1] // patch) * (shape[2] // patch), max_shift=1.16)}
