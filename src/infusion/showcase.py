"""A trained adapter -> the pictures that show what it did, base and customized at the same seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infusion.base import Base
from infusion.latents import decode_latents
from infusion.methods import Adapter
from infusion.pipeline import sample_prompts
from infusion.report import Comparison, Untouched

COMPARED = (
    "a {} on the beach",
    "a {} in the snow",
    "a {} in front of a brick wall",
    "a {} in the forest",
    "a {} on a wooden floor",
    "a {} in the desert",
    "a {} under the night sky",
    "a {} in the water",
    "a photo of a {}",
)
"""Prompts for a concept in new places."""

UNTOUCHED = ("a {} on the beach", "a blue {} in the snow", "a red car in front of a brick wall", "a duck in the forest")
"""Prompts that do not name the concept; {} is the plain class noun."""


@dataclass(frozen=True)
class Showcase:
    """What `show_adapter` drew. comparisons name the concept, untouched does not."""

    comparisons: list[Comparison]
    untouched: list[Untouched]


def show_adapter(
    base: Base,
    adapter: Adapter,
    prompts: Sequence[str] = COMPARED,
    seeds: Sequence[int] = range(4),
    num_inference_steps: int = 30,
    guidance_scale: float = 5.0,
) -> Showcase:
    """Draw prompts with and without the adapter, at the same seeds and in the same batches.

    Prompts with and without the concept are drawn together, so that the untouched ones are measured beside customized
    neighbours. The difference is that of the latents, before they are rounded to a picture.
    """
    named = [prompt.format(f"<{adapter.concept_name}>") for prompt in prompts]
    plain = [prompt.format(adapter.class_noun) for prompt in (*prompts, *UNTOUCHED)]
    customized = [*named, *plain[len(named) :]]

    def draw(texts: Sequence[str], *adapters: Adapter) -> Tensor:
        settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        latents = torch.cat(list(sample_prompts(base, texts, adapters, seeds, **settings)))  # type: ignore[arg-type]
        return latents.unflatten(0, (len(texts), len(seeds)))

    before, after = draw(plain), draw(customized, adapter)
    comparisons = [
        Comparison(prompt, list(seeds), decode_latents(base, before[row]), decode_latents(base, after[row]))
        for row, prompt in enumerate(named)
    ]
    untouched = [
        _untouched(base, customized[row], seeds[0], before[row, :1], after[row, :1])
        for row in range(len(named), len(plain))
    ]
    return Showcase(comparisons, untouched)


def _untouched(base: Base, prompt: str, seed: int, before: Tensor, after: Tensor) -> Untouched:
    difference = float((after - before).abs().max())
    pictures = (*decode_latents(base, before), *decode_latents(base, after))
    return Untouched(prompt, seed, *pictures, difference, "latents")
