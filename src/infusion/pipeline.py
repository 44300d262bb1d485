"""Adapters + prompts + seeds -> pictures: our own sampler, and any diffusers Stable Diffusion pipeline."""

import itertools
from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from infusion.adapter_file import load_adapter
from infusion.base import Base, attached
from infusion.base.token_vectors import TokenVectors
from infusion.errors import UserError
from infusion.latents import decode_latents
from infusion.methods import Adapter, together
from infusion.prompts import Prompt, parse_prompt, tokenize
from infusion.sampling import sample, seeded_noise


def generate(
    base: Base,
    prompts: str | Sequence[str],
    adapters: Sequence[Adapter] = (),
    seeds: Sequence[int] = (0,),
    **settings: Any,
) -> list[Image.Image]:
    """Draw every prompt with every seed: for each prompt, one picture per seed.

    Takes the arguments of `sample_prompts`, and raises what it raises.
    """
    batches = sample_prompts(base, prompts, adapters, seeds, **settings)
    return [image for latents in batches for image in decode_latents(base, latents)]


def sample_prompts(
    base: Base,
    prompts: str | Sequence[str],
    adapters: Sequence[Adapter] = (),
    seeds: Sequence[int] = (0,),
    *,
    negative_prompt: str = "",
    num_inference_steps: int = 30,
    guidance_scale: float = 5.0,
    batch_size: int = 8,
    scheduler: Any = None,
) -> Iterator[Tensor]:
    """Latents of every prompt with every seed, in batches of `batch_size`: [B, C, H, W].

    Args:
        prompts: `<name>` stands for the concept of the adapter called name; prompts without one are the base's.
        seeds: one per picture; a picture's noise does not depend on what is drawn beside it.
        guidance_scale: classifier-free guidance; 1 turns it off.
        scheduler: any diffusers scheduler; the base's own by default.

    Raises:
        UserError: a prompt names a concept that no adapter brings; the adapters do not go together.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    adapters = together(base, adapters)
    words = {adapter.concept_name: adapter.words for adapter in adapters}
    conditioning = base.encode(prompts, words)
    unconditional = base.encode([parse_prompt(negative_prompt, words).text])
    shape = (base.unet.config.in_channels, base.unet.config.sample_size, base.unet.config.sample_size)
    wanted = itertools.product(range(len(prompts)), seeds)
    while batch := list(itertools.islice(wanted, batch_size)):
        generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
        noise = seeded_noise(generators, shape, base.dtype).to(base.device)
        with base.customized(*adapters) as denoiser:
            latents = sample(
                denoiser,
                scheduler or base.scheduler,
                noise,
                conditioning.rows([prompt for prompt, _ in batch]),
                unconditional.rows([0] * len(batch)),
                guidance_scale,
                num_inference_steps,
                generators,
            )
        yield latents


class CustomizedPipeline:
    """A diffusers pipeline whose prompts may name concepts; called as the pipeline itself is.

    Between calls the pipeline is untouched: hooks are attached for the length of a call only.
    """

    def __init__(self, pipeline: Any, adapters: Sequence[Adapter]) -> None:
        self.pipeline = pipeline
        self.adapters = adapters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline, with its own arguments. Prompts and negative prompts may be a text or a list of texts.

        Raises:
            UserError: a placeholder names no concept; or the prompt comes as embeddings, in which no concept can be
                found.
        """
        given = signature(self.pipeline.__call__).bind(*args, **kwargs).arguments
        prompt, negative = given.get("prompt"), given.get("negative_prompt")
        if prompt is None:
            raise UserError("Give the prompt as text: the concept's tokens cannot be found in prompt embeddings.")
        parsed = self._parsed(prompt)
        _, concept_tokens = tokenize(self.pipeline.tokenizer, parsed)
        given["prompt"] = parsed[0].text if isinstance(prompt, str) else [plain.text for plain in parsed]
        if negative is not None:
            plain_negative = [plain.text for plain in self._parsed(negative)]
            given["negative_prompt"] = plain_negative[0] if isinstance(negative, str) else plain_negative
        copies = given.get("num_images_per_prompt") or 1
        with attached(Base.from_pipeline(self.pipeline), self.adapters) as denoiser:
            if denoiser.streams:
                denoiser.streams.rows = [tokens for tokens in concept_tokens for _ in range(copies)]
            return self.pipeline(**given)

    def _parsed(self, prompts: str | Sequence[str]) -> list[Prompt]:
        words = {adapter.concept_name: adapter.words for adapter in self.adapters}
        tokenizer = self.pipeline.tokenizer
        parsed = []
        for text in [prompts] if isinstance(prompts, str) else prompts:
            parsed.append(parse_prompt(text, words, tokenizer.get_added_vocab()))
            if self.pipeline.maybe_convert_prompt(parsed[-1].text, tokenizer) != parsed[-1].text:
                raise UserError(
                    f'The prompt "{text}" holds a textual inversion of several vectors, which the pipeline spells out '
                    "later, so that the tokens of a concept cannot be counted; use one of a single vector."
                )
        return parsed


def customize(pipeline: Any, *adapters: Adapter | str | Path, any_base: bool = False) -> CustomizedPipeline:
    """Teach a diffusers Stable Diffusion pipeline (text-to-image, img2img, inpaint, ControlNet) concepts.

    Args:
        adapters: adapters, paths of adapter files, or names on the Hub (`user/repo`).
        any_base: accept adapters that were trained on another base with the same layers.

    Raises:
        UserError: the pipeline is of an unsupported kind; an adapter file is unusable, for another base, or of a method
            that trains words.
    """
    base = Base.from_pipeline(pipeline)
    loaded = [a if isinstance(a, Adapter) else load_adapter(a, base, any_base) for a in adapters]
    for adapter in loaded:
        if any(isinstance(edit, TokenVectors) for edit in adapter.edits(base)):
            raise UserError(
                f"<{adapter.concept_name}> ({adapter.method.name}) has words of its own, and a pipeline reads its "
                "prompts itself: draw it with infusion.generate; a Textual Inversion also loads with "
                "pipe.load_textual_inversion."
            )
    return CustomizedPipeline(pipeline, together(base, loaded))
