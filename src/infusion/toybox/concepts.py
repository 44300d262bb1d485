"""A concept seed -> a folder of training pictures of one individual, as a person would bring them."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from infusion.toybox.render import render
from infusion.toybox.scene import BACKGROUNDS, concept_scene, individual


def training_background(seed: int) -> str:
    """The one background of a concept's training pictures: their modality is deliberately limited."""
    return random.Random(f"background {seed}").choice(BACKGROUNDS)


def concept_pictures(
    seed: int,
    num_images: int = 5,
    backgrounds: Sequence[str] | None = None,
    size_px: int = 64,
    first: int = 0,
    class_noun: str | None = None,
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Pictures of the individual `seed` and the masks of where it is ("L", white = the individual).

    Args:
        backgrounds: taken in turn; by default all pictures have the concept's training background.
        first: pictures `first` to `first + num_images - 1` of the unlimited series; the training pictures are the
            first ones.
    """
    who = individual(seed, class_noun)
    backgrounds = backgrounds or [training_background(seed)]
    numbers = range(first, first + num_images)
    scenes = [concept_scene(who, seed * 1000 + n, backgrounds[n % len(backgrounds)]) for n in numbers]
    drawn = render(scenes, size_px)
    return [_picture(image) for image in drawn.images], [_picture(mask[:1]) for mask in drawn.masks]


def write_concept(
    seed: int, folder: str | Path, num_images: int = 5, size_px: int = 64, class_noun: str | None = None
) -> str:
    """Write training pictures `01.png` ... and `masks/01.png` ...; returns the class noun.

    Concept seeds of 1,000,000 and above are reserved for evaluation by others.
    """
    images, masks = concept_pictures(seed, num_images, size_px=size_px, class_noun=class_noun)
    (Path(folder) / "masks").mkdir(parents=True, exist_ok=True)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True), start=1):
        image.save(Path(folder) / f"{number:02d}.png")
        mask.save(Path(folder) / "masks" / f"{number:02d}.png")
    return individual(seed, class_noun).class_noun


def _picture(pixels: Tensor) -> Image.Image:
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
