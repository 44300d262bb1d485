"""Features of images of the plain class prompt -> how different they are: what a model forgets of its class."""

import torch
from torch import Tensor
from torch.nn import functional as F

from infusion.intervals import Figure, jackknife
from infusion.metrics.metric import AGNOSTIC, Evidence, Measure, Metric, Need


def class_diversity(features: Tensor) -> float:
    """Mean cosine distance between two of N images, of features [N, D]; 0 when all are alike.

    Without repeated rows: its interval is the jackknife's, leaving out images or prompts (`over_prompts`).
    """
    assert len(features) > 1
    unit = F.normalize(torch.as_tensor(features).double(), dim=1)
    num = len(unit)
    cosines = (unit.sum(dim=0).square().sum().item() - num) / (num * (num - 1))  # mean over pairs
    return 1 - cosines


def _compute(evidence: Evidence) -> dict[str, Figure]:
    assert evidence.class_images and evidence.base_class_images
    own, base = (some.features(evidence.clip) for some in (evidence.class_images, evidence.base_class_images))
    ratio = jackknife(lambda kept: class_diversity(own[kept]) / class_diversity(base[kept]), len(own))
    return {"class_diversity": ratio}


METRIC = Metric(
    (
        Measure(
            "class_diversity",
            "class diversity",
            "Mean distance among images of the plain class noun, over the base model's: below 1 the class has "
            "collapsed.",
            "higher",
            AGNOSTIC,
            place=20,
            unchanged=1.0,
        ),
    ),
    frozenset({Need.CLASS_IMAGES}),
    _compute,
)
