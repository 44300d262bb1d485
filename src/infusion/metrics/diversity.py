"""Features of pictures of the plain class prompt -> how different they are: what a model forgets of its class."""

import torch
from torch import Tensor
from torch.nn import functional as F


def class_diversity(features: Tensor) -> float:
    """Mean cosine distance between two of N pictures, of features [N, D]; 0 when all are alike.

    Without repeated rows: its interval is the jackknife's, leaving out pictures or prompts (`over_prompts`).
    """
    assert len(features) > 1
    unit = F.normalize(torch.as_tensor(features).double(), dim=1)
    num = len(unit)
    cosines = (unit.sum(dim=0).square().sum().item() - num) / (num * (num - 1))  # mean over pairs
    return 1 - cosines
