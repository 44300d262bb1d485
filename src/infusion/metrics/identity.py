"""Features of images and of the training images -> how like the concept they are, between the base and real images.

A cosine means nothing by itself: `Alignment` is what it is compared with, the base's images of the class noun (floor)
and other real images of the concept (ceiling). Use encoders that no method was trained with.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from infusion.errors import UserError
from infusion.intervals import Figure, mean
from infusion.metrics.metric import AGNOSTIC, FIDELITY, Evidence, Measure, Metric, Need
from infusion.metrics.prompts import mean_over_prompts


def image_alignment(images: Tensor, references: Tensor) -> Tensor:
    """Mean cosine of each image to the training images, of features [N, D] and [K, D], [N] (arXiv 2208.12242, 4.1)."""
    return (images @ references.T).mean(dim=1)


@dataclass(frozen=True)
class Alignment:
    """The two ends of image alignment.

    floor: of the base's images of the class noun. ceiling: of other real images of the concept.

    Raises:
        UserError: the ceiling is not above the floor.
    """

    floor: float
    ceiling: float

    def __post_init__(self) -> None:
        if not self.ceiling > self.floor:
            raise UserError(
                f"Other images of the concept ({self.ceiling:.3f}) are no more like the training images than the "
                f"base's images of its class noun ({self.floor:.3f}): choose another encoder or other images."
            )

    @classmethod
    def measured(cls, references: Tensor, class_images: Tensor, others: Tensor | None = None) -> "Alignment":
        """From features of the training images, of the base's of the class noun, and of real ones not trained on.

        Without others the training images among themselves stand in.
        """
        floor = image_alignment(class_images, references).mean().item()
        if others is not None:
            return cls(floor, image_alignment(others, references).mean().item())
        return cls(floor, to_each_other(references).nanmean().item())


def to_each_other(features: Tensor) -> Tensor:
    """Cosines of features [K, D] to each other [K, K]; NaN to themselves."""
    return (features @ features.T).fill_diagonal_(float("nan"))


class Identity(NamedTuple):
    """Raw cosines of each image [N]; identity of each [N] and of each class image over the base's [M].

    The latter two are None where floor and ceiling cannot be distinguished.
    """

    cosines: Tensor
    identity: Tensor | None
    leak: Tensor | None


def of_each_image(evidence: Evidence) -> Identity:
    """Prompt by prompt each image is compared with the base's own images of that prompt."""
    encoder, prompt_of = evidence.encoder, evidence.prompt_of
    assert evidence.training and evidence.class_images and evidence.base_class_images
    training, base = (some.features(encoder) for some in (evidence.training, evidence.base_images))
    cosines, of_base, of_class, of_base_class = (
        image_alignment(some.features(encoder), training)
        for some in (evidence.images, evidence.base_images, evidence.class_images, evidence.base_class_images)
    )
    others = evidence.elsewhere.features(encoder) if evidence.elsewhere else None
    try:
        scale = Alignment.measured(training, base, others)
    except UserError:
        return Identity(cosines, None, None)
    floor = np.bincount(prompt_of, of_base.double().numpy()) / np.bincount(prompt_of)  # [P]
    identity = (cosines.double() - torch.from_numpy(floor[prompt_of])) / (scale.ceiling - scale.floor)
    return Identity(cosines, identity, (of_class - of_base_class) / (scale.ceiling - scale.floor))


def _compute(evidence: Evidence) -> dict[str, Figure]:
    cosines, identity, leak = evidence.once(of_each_image)
    figures = {"image_alignment": mean_over_prompts(cosines, evidence.prompt_of)}
    if identity is not None and leak is not None:
        figures |= {"identity": mean_over_prompts(identity, evidence.prompt_of), "class_leak": mean(leak.numpy())}
    return figures


METRIC = Metric(
    (
        Measure(
            "identity",
            "identity",
            "Where the images stand between 0, the base model's images of the class noun from the same prompts, "
            "and 1, other real images of the individual; above 1 is copying, not quality.",
            "higher",
            FIDELITY,
            place=10,
        ),
        Measure(
            "image_alignment",
            "image alignment",
            "Cosine between an image and the training images, raw: a copy scores highest, so neither way is called "
            "better.",
            None,
            FIDELITY,
            place=30,
        ),
        Measure(
            "class_leak",
            "class leak",
            "Identity of images of the plain class noun: above 0 the concept has hijacked its class.",
            "lower",
            AGNOSTIC,
            place=30,
            unchanged=0.0,
        ),
    ),
    frozenset({Need.TRAINING_IMAGES, Need.CLASS_IMAGES}),
    _compute,
)
