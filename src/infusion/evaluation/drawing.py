"""A model, prompts and seeds -> latents and images, as tensors and as PIL."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infusion.base import Base
from infusion.base.customization import Named
from infusion.base.latents import decode_latents
from infusion.evaluation.plans import Plan
from infusion.generation.pipeline import sample_prompts
from infusion.generation.sampling import few_step_scheduler


class Asked(NamedTuple):
    """Texts to draw, and the seeds of every text alike, or a list for each text."""

    texts: Sequence[str]
    seeds: Sequence[int] | Sequence[Sequence[int]]

    def facts(self, plan: Plan) -> dict[str, Any]:
        """What latents depend on, beside the model."""
        drawing = plan.drawing
        return {
            "texts": list(self.texts),
            "seeds": list(self.seeds),
            "num_inference_steps": drawing.num_inference_steps,
            "guidance_scale": drawing.guidance_scale,
        }


def draw(
    base: Base,
    plan: Plan,
    texts: Sequence[str],
    seeds: Sequence[int] | Sequence[Sequence[int]],
    adapters: Sequence[Named] = (),
    report: Callable[[int], None] | None = None,
    lock_until: float = 1.0,
) -> Tensor:
    """Latents [N, C, H, W] of every text with every seed, in few steps.

    Args:
        seeds: of every text alike, or a list for each text.
        lock_until: as `sample_prompts` has it.
        report: called with how many were drawn, after every batch.
    """
    batches = sample_prompts(
        base,
        texts,
        adapters,
        seeds,
        num_inference_steps=plan.drawing.num_inference_steps,
        guidance_scale=plan.drawing.guidance_scale,
        batch_size=16,
        scheduler=few_step_scheduler(base),
        lock_until=lock_until,
    )
    drawn = []
    for latents in batches:
        drawn.append(latents)
        if report:
            report(len(latents))
    return torch.cat(drawn)


def decoded(base: Base, latents: Tensor) -> Tensor:
    """Latents -> images [N, 3, H, W] in [0, 1], rounded as a file rounds them."""
    return to_tensor([image for some in latents.split(16) for image in decode_latents(base, some)])


def as_image(image: Tensor) -> Image.Image:
    """An image [3, H, W] in [0, 1] -> PIL."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def to_tensor(images: Sequence[object]) -> Tensor:
    """PIL images of one size -> [N, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255
