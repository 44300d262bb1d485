"""Features of two sets of images -> how often chance alone makes two sets differ so much."""

import math

import numpy as np
from scipy.spatial.distance import cdist

from infusion.metrics.distances import Rows, as_array

_NUM_DEALS = 399


def chance(x: Rows, y: Rows, prompt_of_x: np.ndarray, prompt_of_y: np.ndarray) -> float:
    """The p-value of a permutation test of the energy distance (Székely and Rizzo, InterStat 5, 2004).

        2 E|x - y| - E|x - x'| - E|y - y'|

    The images of every prompt are dealt to the two sides anew, as many to each as it had. Valid where every image
    of both sets is drawn with a noise of its own.

    Args:
        x, y: [N, D] and [M, D].
        prompt_of_x, prompt_of_y: [N] and [M], the prompt of each row.

    Returns:
        in (0, 1]; NaN where there are too few images to deal.
    """
    if min(len(x), len(y)) == 0:
        return math.nan
    pooled = np.concatenate([as_array(x), as_array(y)])
    in_x, prompt_of = np.arange(len(pooled)) < len(x), np.concatenate([prompt_of_x, prompt_of_y])
    rows = [np.flatnonzero(prompt_of == prompt) for prompt in np.unique(prompt_of)]
    if math.prod(math.comb(len(some), int(in_x[some].sum())) for some in rows) <= _NUM_DEALS:
        return math.nan
    rng, sides = np.random.default_rng(0), np.tile(in_x, (1 + _NUM_DEALS, 1))
    for some in rows:
        sides[1:, some] = rng.permuted(sides[1:, some], axis=1)
    weights = np.where(sides, 1 / len(x), -1 / len(y))
    observed, *dealt = -((weights @ cdist(pooled, pooled)) * weights).sum(axis=1)
    rounding = 1e-9 * abs(observed)
    return float((1 + sum(value >= observed - rounding for value in dealt)) / (1 + _NUM_DEALS))
