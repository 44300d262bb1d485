"""Images drawn from memory, training images -> which of them are training images over again, pixel by pixel."""

from typing import NamedTuple

import torch
from torch import Tensor

from infusion.intervals import Figure, share
from infusion.metrics.metric import SPECIFIC, Evidence, Measure, Metric, Need

_ENOUGH_NEARER = 0.5  # of what two training images differ by; our choice


class Recalled(NamedTuple):
    """Which training image each of N images is nearest to, how far from it, and below what distance it is a copy.

    reference, distance: [N]; distances are root mean squares over the pixels, which are in [0, 1].
    """

    reference: Tensor
    distance: Tensor
    bar: float

    @property
    def is_copy(self) -> Tensor:
        """[N] bool."""
        return self.distance < self.bar


def recalled(images: Tensor, references: Tensor) -> Recalled:
    """Copies among images [N, 3, H, W]: nearer to a training image than half of what two of these differ by.

    The distance is that of Carlini et al. (arXiv 2301.13188, section 4), whose threshold is one of large collections;
    here it is taken from the training images [K, 3, H, W] themselves, the median over their pairs, K > 1.
    """
    assert len(references) > 1
    apart = _distances(references, references)
    bar = _ENOUGH_NEARER * apart[~torch.eye(len(references), dtype=torch.bool)].median().item()
    distance, reference = _distances(images, references).min(dim=1)
    return Recalled(reference, distance, bar)


def _distances(images: Tensor, references: Tensor) -> Tensor:
    """[N, K]."""
    return torch.stack([(images - reference).square().mean(dim=(1, 2, 3)).sqrt() for reference in references], dim=1)


def of_each_image(evidence: Evidence) -> Recalled:
    assert evidence.unguided and evidence.training
    return recalled(evidence.unguided.tensor, evidence.training.tensor)


def _compute(evidence: Evidence) -> dict[str, Figure]:
    return {"recalled": share(evidence.once(of_each_image).is_copy.tolist())}


METRIC = Metric(
    (
        Measure(
            "recalled",
            "recalled",
            "Of images drawn from the words for the subject alone, without guidance, the share that is a training "
            "image over again, pixel by pixel: nearer than half of what two training images differ by.",
            "lower",
            SPECIFIC,
            is_share=True,
        ),
    ),
    frozenset({Need.TRAINING_IMAGES, Need.UNGUIDED_IMAGES}),
    _compute,
)
