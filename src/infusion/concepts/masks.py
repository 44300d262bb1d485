"""Where the subject is in each training image: masks as given, or from the base model's own attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageStat
from torch import Tensor

from infusion.base import Base
from infusion.base.cross_attention import AttentionRecorder
from infusion.base.latents import encode_images
from infusion.concepts.concept import Concept
from infusion.concepts.crop import cropped

_NUM_NOISES = 8
NOISE_LEVELS = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class SubjectMask:
    """White where the subject is ("L"). source: "given", "alpha", "clipseg" or "attention"."""

    image: Image.Image
    source: str

    @property
    def coverage(self) -> float:
        """Share of the image that is learnt, in [0, 1]."""
        return ImageStat.Stat(self.image).mean[0] / 255


def subject_masks(base: Base, concept: Concept, crop: str = "square") -> list[SubjectMask]:
    """One soft mask per training image, of what training sees of it (`infusion.concepts.crop`)."""
    images = [cropped(image, base, crop) for image in concept.images]
    missing = [i for i, mask in enumerate(concept.masks) if mask is None]
    found = dict(zip(missing, attention_masks(base, [images[i] for i in missing], concept.class_noun), strict=True))
    return [
        SubjectMask(found[i], "attention") if mask is None else SubjectMask(cropped(mask, base, crop), str(source))
        for i, (mask, source) in enumerate(zip(concept.masks, concept.mask_sources, strict=True))
    ]


@torch.no_grad()
def attention_masks(base: Base, images: Sequence[Image.Image], class_noun: str) -> list[Image.Image]:
    """What the base's cross-attention to the class noun covers of each image: mean over noises, layers and heads."""
    conditioning = base.encode(["a photo of a <subject>"], {"subject": class_noun}).rows([0] * _NUM_NOISES)
    text_mask = conditioning.attention_mask if base.family.masks_text else None
    tokens = [row["subject"] for row in conditioning.concept_tokens]
    generator = torch.Generator().manual_seed(0)
    masks = []
    for image in images:
        latents = encode_images(base, [image]).expand(_NUM_NOISES, -1, -1, -1)
        height, width = latents.shape[-2:]
        total = torch.zeros(height, width)
        for level in NOISE_LEVELS:
            timestep = torch.tensor(int(level * base.noise_schedule.config.num_train_timesteps), device=base.device)
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            with AttentionRecorder(base.network, text_mask) as recorder:
                base.predict(base.noise_schedule.add_noise(latents, noise, timestep[None]), timestep, conditioning)
                total += recorder.token_map(tokens, height, width).mean(0)
        masks.append(_as_mask(total).resize(image.size, Image.Resampling.BILINEAR))
    return masks


def stretched(attention: Tensor) -> Tensor:
    """A map [H, W] in [0, 1], from its darkest tenth to its brightest twentieth: a flat background becomes 0."""
    low, high = torch.quantile(attention.flatten(), torch.tensor([0.10, 0.95]))
    return ((attention - low) / (high - low).clamp(min=1e-8)).clamp(0, 1)


def _as_mask(attention: Tensor) -> Image.Image:
    return Image.fromarray((stretched(attention) * 255).round().to(torch.uint8).numpy(), mode="L")
