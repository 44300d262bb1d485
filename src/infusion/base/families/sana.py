"""Sana: a linear transformer with cross-attention to a Gemma text model, which reads an instruction first."""

from collections.abc import Sequence
from inspect import signature
from typing import Any, ClassVar

from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.families.family import Family, TextLayer, attention_layers, is_cross_attention, shifted, texts_of
from infusion.base.families.pixart import lowered
from infusion.errors import UserError
from infusion.prompts import ConceptTokens, Mention, Prompt, tokenize


class Sana(Family):
    architecture: ClassVar[str] = "sana"

    def text_layers(self, network: nn.Module) -> dict[str, TextLayer]:
        # linear self-attention is an Attention too, without cross_attention_dim; attn2 alone reads text
        return attention_layers(network, is_cross_attention)

    def concept_tokens(self, pipeline: Any, prompts: Sequence[Prompt], **options: Any) -> list[ConceptTokens]:
        """Of what is read, the pipeline keeps the first state and the last `max_sequence_length` - 1."""
        defaults = _defaults(pipeline)
        length = options.get("max_sequence_length") or defaults["max_sequence_length"]
        instruction = options.get("complex_human_instruction", defaults["complex_human_instruction"])
        prefix = "\n".join(instruction or ())
        num_prefix = len(pipeline.tokenizer.encode(prefix)) if prefix else 0
        limit = num_prefix + length - 2 if prefix else length
        rows = tokenize(pipeline.tokenizer, [_after(prefix, lowered(prompt)) for prompt in prompts], limit)[1]
        kept = shifted(rows, length - limit)
        if any(at < 1 for row in kept for tokens in row.values() for at in tokens):
            raise UserError("The concept stands among the tokens that this pipeline drops; write a shorter prompt.")
        return kept

    def encode(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        return self._encoded(pipeline, prompts, _defaults(pipeline)["complex_human_instruction"])

    def encode_negative(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        """Read without the instruction."""
        return self._encoded(pipeline, prompts, None)

    def _encoded(self, pipeline: Any, prompts: Sequence[Prompt], instruction: Sequence[str] | None) -> Conditioning:
        options = {"complex_human_instruction": instruction}
        states, mask, *_ = pipeline.encode_prompt(
            texts_of(prompts),
            do_classifier_free_guidance=False,
            device=pipeline.transformer.device,
            max_sequence_length=_defaults(pipeline)["max_sequence_length"],
            **options,
        )
        tokens = self.concept_tokens(pipeline, prompts, **options)
        return Conditioning(states.to(pipeline.transformer.dtype), tuple(tokens), attention_mask=mask)

    def inputs(self, pipeline: Any, noisy_latents: Tensor, timesteps: Tensor, told: Conditioning) -> dict[str, Any]:
        given = super().inputs(pipeline, noisy_latents, timesteps, told)
        scaled = given["timestep"] * pipeline.transformer.config.timestep_scale
        return given | {"timestep": scaled, "encoder_attention_mask": told.attention_mask}


def _after(prefix: str, prompt: Prompt) -> Prompt:
    by = len(prefix)
    mentions = tuple(Mention(concept, start + by, end + by) for concept, start, end in prompt.mentions)
    return Prompt(prefix + prompt.text, mentions)


def _defaults(pipeline: Any) -> dict[str, Any]:
    """What a call of the pipeline says of prompts, where the person says nothing."""
    parameters = signature(type(pipeline).__call__).parameters
    return {name: parameters[name].default for name in ("max_sequence_length", "complex_human_instruction")}
