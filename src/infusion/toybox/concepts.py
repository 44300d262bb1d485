"""A concept seed -> a folder of training images of one individual, as a person would bring them."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from infusion.files import save_png
from infusion.toybox.render import render
from infusion.toybox.scene import BACKGROUNDS, Scene, concept_scene, individual


def training_background(seed: int) -> str:
    """The one background of a concept's training images: their modality is deliberately limited."""
    return random.Random(f"background {seed}").choice(BACKGROUNDS)


def concept_scenes(
    seed: int,
    num_images: int = 5,
    backgrounds: Sequence[str] | None = None,
    first: int = 0,
    class_noun: str | None = None,
) -> list[Scene]:
    """Images of the individual `seed`, by daylight, photographed: their facts.

    Args:
        backgrounds: taken in turn; by default all images have the concept's training background.
        first: images `first` to `first + num_images - 1` of the unlimited series; the training images are the
            first ones.
    """
    who = individual(seed, class_noun)
    backgrounds = backgrounds or [training_background(seed)]
    numbers = range(first, first + num_images)
    return [concept_scene(who, seed * 1000 + n, backgrounds[n % len(backgrounds)]) for n in numbers]


def concept_images(
    seed: int,
    num_images: int = 5,
    backgrounds: Sequence[str] | None = None,
    size_px: int = 64,
    first: int = 0,
    class_noun: str | None = None,
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Images of `concept_scenes` and the masks of where the individual is ("L", white = the individual)."""
    drawn = render(concept_scenes(seed, num_images, backgrounds, first, class_noun), size_px)
    return [to_image(image) for image in drawn.images], [to_image(mask[:1]) for mask in drawn.masks]


def write_concept(
    seed: int,
    folder: str | Path,
    num_images: int = 5,
    backgrounds: Sequence[str] | None = None,
    size_px: int = 64,
    first: int = 0,
    class_noun: str | None = None,
) -> str:
    """Write images `01.png` ... and `masks/01.png` ... as people bring them; returns the class noun.

    Takes the arguments of `concept_scenes`. Concept seeds of `FIRST_RESERVED_CONCEPT` and above are reserved for
    evaluation by others.
    """
    images, masks = concept_images(seed, num_images, backgrounds, size_px, first, class_noun)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True), start=1):
        save_png(image, Path(folder) / f"{number:02d}.png")
        save_png(mask, Path(folder) / "masks" / f"{number:02d}.png")
    return individual(seed, class_noun).class_noun


def to_image(pixels: Tensor) -> Image.Image:
    """[3, H, W] or [1, H, W] in [0, 1] -> an RGB or an L image."""
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
