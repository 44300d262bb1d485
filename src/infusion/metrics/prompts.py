"""A value of every image, or a statistic of them -> a figure with its interval over prompts."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from infusion.intervals import Figure, jackknife, mean


def mean_over_prompts(values: Tensor, prompt_of: np.ndarray) -> Figure:
    """Mean of values [N], with its interval over prompts."""
    prompts, at = np.unique(prompt_of, return_inverse=True)
    sums = np.bincount(at, values.double().numpy(), minlength=len(prompts))
    return mean(sums / np.bincount(at))


def over_prompts(statistic: Callable[[np.ndarray], float], prompt_of: np.ndarray | Tensor) -> Figure:
    """A statistic of rows, with the jackknife's interval: `over_prompts(lambda rows: exact_w2(x[rows], y[rows]), of)`.

    Each time all images of one prompt are left out. Prompts drawn with repetition, as the bootstrap draws them, would
    bias a distance: copies are carried to copies, and fewer points are left to match.

    Args:
        statistic: of the indices of the rows that are kept.
        prompt_of: [N] the prompt, or another group, of each row.
    """
    groups, group_of = np.unique(np.asarray(prompt_of), return_inverse=True)
    return jackknife(lambda kept: statistic(np.flatnonzero(np.isin(group_of, kept))), len(groups))
