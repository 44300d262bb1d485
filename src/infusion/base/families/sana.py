"""Sana: a linear transformer with cross-attention to a Gemma text model, which reads an instruction first."""

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
    shifted,
    texts_of,
    tokenized,
)
from infusion.base.families.pixart import lowered
from infusion.base.prompts import ConceptTokens, Mention, Prompt

_OPTIONS = ("max_sequence_length", "complex_human_instruction")


class Sana(Family):
    known_as: ClassVar[str] = "Sana"
    network_class: ClassVar[str] = "SanaTransformer2DModel"
    architecture = "sana"
    masks_text = True
    samples_in_fp32 = True

    def text_layers(self, network: nn.Module) -> dict[str, TextLayer]:
        return attention_layers(network, is_cross_attention)

    def tokenize(self, pipeline: Any, prompts: Sequence[Prompt], **options: Any) -> tuple[Tensor, list[ConceptTokens]]:
        """Of all that is read, the pipeline keeps the first state and the last `max_sequence_length` - 1."""
        options = _defaults(pipeline) | {name: value for name, value in options.items() if name in _OPTIONS}
        length, instruction = (options[name] for name in _OPTIONS)
        prefix = "\n".join(instruction or ())
        read = len(pipeline.tokenizer.encode(prefix)) + length - 2 if prefix else length
        whole = [_after(prefix, lowered(prompt)) for prompt in prompts]
        ids, concept_tokens = tokenized(pipeline.tokenizer, whole, read)
        kept = shifted(concept_tokens, length - read)
        assert all(at > 0 for row in kept for tokens in row.values() for at in tokens)
        return torch.cat([ids[:, :1], ids[:, 1 - length :]], dim=1), kept

    def encode(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        return self._encoded(pipeline, prompts, _defaults(pipeline))

    def encode_negative(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        """Read without the instruction."""
        return self._encoded(pipeline, prompts, _defaults(pipeline) | {"complex_human_instruction": None})

    def _encoded(self, pipeline: Any, prompts: Sequence[Prompt], options: dict[str, Any]) -> Conditioning:
        device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
        token_ids, concept_tokens = self.tokenize(pipeline, prompts, **options)
        states, mask, *_ = pipeline.encode_prompt(
            texts_of(prompts), do_classifier_free_guidance=False, device=device, **options
        )
        return Conditioning(states.to(dtype), tuple(concept_tokens), token_ids.to(device), mask)

    def inputs(self, pipeline: Any, noisy_latents: Tensor, timesteps: Tensor, told: Conditioning) -> dict[str, Any]:
        given = super().inputs(pipeline, noisy_latents, timesteps, told)
        scaled = given["timestep"] * pipeline.transformer.config.timestep_scale
        return given | {"timestep": scaled, "encoder_attention_mask": told.attention_mask}


def _after(prefix: str, prompt: Prompt) -> Prompt:
    by = len(prefix)
    mentions = tuple(Mention(concept, start + by, end + by) for concept, start, end in prompt.mentions)
    return Prompt(prefix + prompt.text, mentions)


def _defaults(pipeline: Any) -> dict[str, Any]:
    return {name: call_default(pipeline, name) for name in _OPTIONS}
