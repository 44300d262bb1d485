"""A concept -> training batches, drawn by (seed, step) alone; every image, mask and text is encoded but once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from infusion.base import Base, Conditioning
from infusion.base.denoising import Batch
from infusion.base.latents import LazyLatents
from infusion.base.noise_schedule import training_timesteps
from infusion.base.prompts import TEMPLATES, class_prompt, name_concept
from infusion.concepts.concept import Concept
from infusion.concepts.crop import cropped
from infusion.concepts.masks import SubjectMask
from infusion.errors import UserError


@dataclass(frozen=True)
class TrainingSet:
    """M images (mirror images included) and P prompts.

    latents [M, C, H, W]; masks [M, 1, H, W]; prompts_of: for every image the prompts that may go with it.
    """

    latents: Tensor | LazyLatents
    masks: Tensor
    conditioning: Conditioning
    prompts_of: Sequence[Sequence[int]]
    noise_schedule: Any

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """`size` rows; what is drawn depends on the generator's state only, never on the device."""
        chosen = torch.randint(len(self.latents), (size,), generator=generator)
        prompts = []
        for image in chosen.tolist():
            choices = self.prompts_of[image]
            prompts.append(choices[int(torch.randint(len(choices), (), generator=generator))])
        drawn = torch.randint(self.noise_schedule.config.num_train_timesteps, (size,), generator=generator)
        timesteps = training_timesteps(self.noise_schedule, drawn)
        latents = self.latents[chosen]
        noise = torch.randn(latents.shape, generator=generator)
        device = latents.device
        masks, conditioning = self.masks[chosen.to(device)], self.conditioning.rows(prompts)
        return Batch(latents, masks, noise.to(device), timesteps.to(device), conditioning)


@dataclass(frozen=True)
class BucketedSet:
    """Images of several shapes, in sets of one shape each."""

    sets: Sequence[TrainingSet]

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """`size` rows of one shape, which is as likely to be drawn as it has images."""
        owners = [one for one in self.sets for _ in range(len(one.latents))]
        drawn = int(torch.randint(len(owners), (), generator=generator))
        return owners[drawn].batch(size, generator)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one optimiser step: the same whether or not training was interrupted before it."""
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def training_set(
    base: Base,
    concept: Concept,
    masks: Sequence[SubjectMask] | None,
    flip: bool,
    words: str | None = None,
    crop: str = "square",
) -> TrainingSet | BucketedSet:
    """A concept's images, masks and prompts; images are encoded as they are drawn.

    Args:
        masks: of the same crop; None where images are learnt whole.
        flip: add every image's mirror image.
        words: what the text model reads where a prompt names the concept; its class noun by default.
        crop: "square" or "buckets" (`concepts.crop`). Images that all get one shape are drawn alike with either.

    Raises:
        UserError: a caption names neither the placeholder nor the class noun; the masks are of another crop.
    """
    images = [cropped(image, base, crop) for image in concept.images]
    mask_images = [mask.image for mask in masks or ()]
    for image, mask in zip(images, mask_images, strict=bool(mask_images)):
        if image.width * mask.height != image.height * mask.width:
            raise UserError(f'The masks are not of the crop "{crop}": make them by subject_masks(base, concept, crop).')
    if flip:
        images += [ImageOps.mirror(image) for image in images]
        mask_images += [ImageOps.mirror(mask) for mask in mask_images]
    prompts, prompts_of = _prompts(concept)
    prompts_of *= 2 if flip else 1
    conditioning = base.encode(prompts, {concept.name: words or concept.class_noun})

    def of_size(size: tuple[int, int]) -> TrainingSet:
        rows = [row for row, image in enumerate(images) if image.size == size]
        width, height = (side // base.pixels_per_latent for side in size)
        drawn = [_latent_mask(mask_images[row], (height, width)) for row in rows if mask_images]
        return TrainingSet(
            latents=LazyLatents(base, [images[row] for row in rows]),
            masks=(torch.stack(drawn) if drawn else torch.ones(len(rows), 1, height, width)).to(base.device),
            conditioning=conditioning,
            prompts_of=[prompts_of[row] for row in rows],
            noise_schedule=base.noise_schedule,
        )

    sets = [of_size(size) for size in dict.fromkeys(image.size for image in images)]
    return sets[0] if len(sets) == 1 else BucketedSet(sets)


def class_set(base: Base, class_noun: str, latents: Tensor) -> TrainingSet:
    """Images that the base drew of `class_prompt(class_noun)`, [M, C, H, W], for prior preservation: learnt whole,
    under the prompt they were drawn with."""
    latents = latents.to(base.device)
    return TrainingSet(
        latents=latents,
        masks=torch.ones_like(latents[:, :1]),
        conditioning=base.encode([class_prompt(class_noun)]),
        prompts_of=[[0]] * len(latents),
        noise_schedule=base.noise_schedule,
    )


def _prompts(concept: Concept) -> tuple[list[str], list[list[int]]]:
    """The distinct training prompts, and which of them go with each image: its caption, or else all templates."""
    prompts = [template.format(concept.placeholder) for template in TEMPLATES]
    templates = list(range(len(prompts)))
    prompts_of = []
    for caption in concept.captions:
        if caption is None:
            prompts_of.append(templates)
        else:
            prompts_of.append([len(prompts)])
            prompts.append(name_concept(caption, concept.placeholder, concept.class_noun))
    return prompts, prompts_of


def _latent_mask(mask: Image.Image, size: Sequence[int]) -> Tensor:
    """A mask image at latent size, bilinear, divided by its maximum: [1, H, W]."""
    pixels = (
        torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8).float().reshape(1, 1, mask.height, mask.width)
    )
    small = F.interpolate(pixels, tuple(size), mode="bilinear", align_corners=False, antialias=True)[0]
    return small / small.max().clamp(min=1e-8)
