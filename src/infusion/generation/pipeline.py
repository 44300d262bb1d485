"""A base + adapters + prompts + seeds -> images, by our own sampler."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from infusion.base import Base, Conditioning
from infusion.base.customization import Named, check_names
from infusion.base.latents import decode_latents
from infusion.base.prompts import parse_prompt
from infusion.errors import UserError, nearest
from infusion.generation.composers import COMPOSERS
from infusion.generation.composers.composer import Composer
from infusion.generation.composers.together import Together
from infusion.generation.guidance import Guided
from infusion.generation.sampling import sample, seeded_noise


def generate(
    base: Base,
    prompts: str | Sequence[str],
    adapters: Sequence[Named] = (),
    seeds: Sequence[int] = (0,),
    **settings: Any,
) -> list[Image.Image]:
    """Draw every prompt with every seed: for each prompt, one image per seed.

    Takes the arguments of `sample_prompts`, and raises what it raises.
    """
    batches = sample_prompts(base, prompts, adapters, seeds, **settings)
    return [image for latents in batches for image in decode_latents(base, latents)]


def sample_prompts(
    base: Base,
    prompts: str | Sequence[str],
    adapters: Sequence[Named] = (),
    seeds: Sequence[int] | Sequence[Sequence[int]] = (0,),
    *,
    negative_prompt: str = "",
    num_inference_steps: int = 30,
    guidance_scale: float | None = None,
    batch_size: int = 8,
    scheduler: Any = None,
    lock_until: float = 1.0,
    composer: str | Composer | None = None,
    conditions: Sequence[Any] = (),
) -> Iterator[Tensor]:
    """Latents of every prompt with every seed, in batches of `batch_size`: [B, C, H, W].

    Args:
        prompts: `<name>` stands for the concept of the adapter called name; prompts without one are the base's.
        seeds: one per image, of every prompt alike, or a list for each prompt; an image's noise does not depend on
            what is drawn beside it.
        guidance_scale: how strongly to follow prompts; 1 turns guidance off. By default what suits the family.
        scheduler: any diffusers scheduler; the base's own by default.
        lock_until: share of the steps in which an image with a concept has the foundation's attention maps. Later
            steps have maps of their own and no foundation beside them: a third faster, and no longer exact.
        composer: how several concepts act in one image, by name (`COMPOSERS`) or as it is; by default all at once.
        conditions: what the composer takes beside the prompts.

    Raises:
        UserError: a prompt names a concept that no adapter brings; the adapters do not go together; the model knows no
            negative prompt; lock_until is no share; there is no such composer; there are lists of seeds for more
            prompts or fewer.
    """
    composing = composer_of(composer, lock_until)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if guidance_scale is None:
        guidance_scale = base.family.default_guidance_scale(base.pipeline)
    check_names(adapters)
    words = {name: words for adapter in adapters for name, words in adapter.spoken.items()}
    conditioning = base.encode(prompts, words)
    unconditional = base.encode_negative([parse_prompt(negative_prompt, words).text])
    embedded = base.family.has_guidance_embedding(base.pipeline)
    if embedded:
        conditioning = _with_guidance(base, conditioning, guidance_scale, negative_prompt)
    options = base.family.timestep_options(scheduler or base.scheduler, num_inference_steps, base.latent_shape)
    wanted = ((at, seed) for at, own in enumerate(_of_each(prompts, seeds)) for seed in own)
    while batch := list(itertools.islice(wanted, batch_size)):
        generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
        noise = seeded_noise(generators, base.latent_shape, base.latent_dtype).to(base.device)
        rows = conditioning.rows([prompt for prompt, _ in batch])
        with composing.composed(base, adapters, rows, conditions) as composition:
            guided = not embedded and guidance_scale > 1
            latents = sample(
                Guided(composition, unconditional, guidance_scale) if guided else composition,
                scheduler or base.scheduler,
                noise,
                rows,
                num_inference_steps,
                generators,
                options,
                composition.before_step,
            )
        yield latents


def _with_guidance(base: Base, conditioning: Conditioning, scale: float, negative_prompt: str) -> Conditioning:
    """For a network that has an embedding of the guidance scale."""
    if negative_prompt:
        raise UserError(f'"{base.id}" is told its guidance and knows no negative prompt: leave it out.')
    return replace(conditioning, guidance_scale=torch.full([len(conditioning)], scale, device=base.device))


def composer_of(composer: str | Composer | None, lock_until: float = 1.0) -> Composer:
    """The composer of a name; UserError where there is none, or it cannot release the lock."""
    if composer is None or composer == "together":
        return Together(lock_until)
    if lock_until != 1:
        raise UserError("lock_until is for the default composer: leave one of them out.")
    if not isinstance(composer, str):
        return composer
    if composer not in COMPOSERS:
        raise UserError(
            f'There is no composer "{composer}".{nearest(composer, COMPOSERS)} There are: {", ".join(COMPOSERS)}.'
        )
    return COMPOSERS[composer]


def _of_each(prompts: Sequence[str], seeds: Sequence[int] | Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """The seeds of every prompt."""
    if all(isinstance(seed, int) for seed in seeds):
        return [seeds] * len(prompts)  # type: ignore[list-item]
    if len(seeds) != len(prompts):
        raise UserError(f"There are {len(prompts)} prompts and lists of seeds for {len(seeds)}: give one for each.")
    return seeds  # type: ignore[return-value]
