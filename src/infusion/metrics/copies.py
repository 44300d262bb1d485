"""Features of images and of the training images -> which images are copies: nearer than other real images ever are."""

import math
from typing import NamedTuple

from torch import Tensor

from infusion.intervals import Figure
from infusion.metrics.identity import to_each_other
from infusion.metrics.metric import SPECIFIC, Evidence, Measure, Metric, Need
from infusion.metrics.prompts import mean_over_prompts

_THE_SAME = 0.9999  # cosine of an image that is among the training images twice


class Nearest(NamedTuple):
    """Which training image an image is most like, and how much; [N] each."""

    reference: Tensor
    cosine: Tensor


def nearest_reference(images: Tensor, references: Tensor) -> Nearest:
    """The training image that each image is most like, of features [N, D] and [K, D]: where a copy is looked for."""
    cosine, reference = (images @ references.T).max(dim=1)
    return Nearest(reference, cosine)


def never_nearer(training: Tensor, same_place: Tensor | None = None) -> float:
    """The most that another real image is like a training image, of features: what is more like one is a copy.

    Args:
        same_place: other real images in the place of the training images; without them these stand in among themselves.
    """
    if same_place is not None:
        return nearest_reference(same_place, training).cosine.max().item()
    cosines = to_each_other(training).nan_to_num(-1)
    return cosines[cosines < _THE_SAME].max().item() if (cosines < _THE_SAME).any() else math.inf


class Copies(NamedTuple):
    """The training image nearest to each image, and how near real images are at most."""

    nearest: Nearest
    never_nearer: float


def of_each_image(evidence: Evidence) -> Copies:
    clip = evidence.clip
    assert evidence.training
    training = evidence.training.features(clip)
    same_place = evidence.same_place.features(clip) if evidence.same_place else None
    return Copies(nearest_reference(evidence.images.features(clip), training), never_nearer(training, same_place))


def _compute(evidence: Evidence) -> dict[str, Figure]:
    nearest, bar = evidence.once(of_each_image)
    return {"copied": mean_over_prompts(nearest.cosine > bar, evidence.prompt_of)}


METRIC = Metric(
    (
        Measure(
            "copied",
            "copied",
            "Share of images nearer to a training image than other real images ever are.",
            "lower",
            SPECIFIC,
            is_share=True,
            place=90,
        ),
    ),
    frozenset({Need.TRAINING_IMAGES}),
    _compute,
)
