"""Adapters + prompts + seeds -> pictures: our own sampler, and any diffusers Stable Diffusion pipeline."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from infusion.adapter_file import load_adapter
from infusion.base import Base, attached
from infusion.errors import UserError
from infusion.latents import decode_latents
from infusion.methods import Adapter
from infusion.prompts import parse_prompt, tokenize
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
) -> Iterator[Tensor]:
    """Latents of every prompt with every seed, in batches of `batch_size`: [B, C, H, W].

    Args:
        prompts: `<name>` stands for the concept of the adapter called name; prompts without one are the base's.
        seeds: one per picture; a picture's noise does not depend on what is drawn beside it.
        guidance_scale: classifier-free guidance; 1 turns it off.

    Raises:
        UserError: a prompt names a concept that no adapter brings.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    conditioning = base.encode(prompts, {adapter.concept_name: adapter.class_noun for adapter in adapters})
    unconditional = base.encode([negative_prompt])
    shape = (base.unet.config.in_channels, base.unet.config.sample_size, base.unet.config.sample_size)
    wanted = itertools.product(range(len(prompts)), seeds)
    while batch := list(itertools.islice(wanted, batch_size)):
        noise = seeded_noise([seed for _, seed in batch], shape, base.dtype).to(base.device)
        with base.customized(*adapters) as denoiser:
            yield sample(
                denoiser,
                base.scheduler,
                noise,
                conditioning.rows([prompt for prompt, _ in batch]),
                unconditional.rows([0] * len(batch)),
                guidance_scale,
                num_inference_steps,
            )


class CustomizedPipeline:
    """A diffusers pipeline whose prompts may name concepts; called as the pipeline itself is.

    Between calls the pipeline is untouched: hooks are attached for the length of a call only.
    """

    def __init__(self, pipeline: Any, adapters: Sequence[Adapter]) -> None:
        self.pipeline = pipeline
        self.adapters = adapters
        self._base = Base.from_pipeline(pipeline)

    def __call__(self, prompt: str | Sequence[str], *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline. `prompt` is a prompt or a list of prompts; all else goes through as it is.

        Raises:
            UserError: a placeholder names no concept; or the prompt comes as embeddings, in which no concept can be
                found.
        """
        if prompt is None or "prompt_embeds" in kwargs:
            raise UserError("Give the prompt as text: the concept's tokens cannot be found in prompt embeddings.")
        class_nouns = {adapter.concept_name: adapter.class_noun for adapter in self.adapters}
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        parsed = [parse_prompt(text, class_nouns) for text in prompts]
        _, concept_tokens = tokenize(self.pipeline.tokenizer, parsed)
        copies = kwargs.get("num_images_per_prompt") or 1
        with attached(self._base, self.adapters) as streams:
            streams.rows = [tokens for tokens in concept_tokens for _ in range(copies)]
            texts = [plain.text for plain in parsed]
            return self.pipeline(texts[0] if isinstance(prompt, str) else texts, *args, **kwargs)


def customize(pipeline: Any, *adapters: Adapter | str | Path, any_base: bool = False) -> CustomizedPipeline:
    """Teach a diffusers Stable Diffusion pipeline (text-to-image, img2img, inpaint, ControlNet) concepts.

    Args:
        adapters: adapters or paths of adapter files.
        any_base: accept adapters that were trained on another base with the same layers.

    Raises:
        UserError: the pipeline is of an unsupported kind, or an adapter file is unusable or for another base.
    """
    base = Base.from_pipeline(pipeline)
    loaded = [a if isinstance(a, Adapter) else load_adapter(a, base, any_base) for a in adapters]
    return CustomizedPipeline(pipeline, loaded)
