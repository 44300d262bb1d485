"""Features of two sets of images -> how far apart the sets lie.

Every distance here is W2 itself, in the features' own unit, never its square. Three views: of the two Gaussians, of
the two empirical distributions, and of their projections on lines.

At finite N all are biased upwards: show beside them how far apart two draws of the base are, and intervals of
`over_prompts`. A customized model that has learnt nothing is at the optimum: never show a distance without how well the
concept was learnt. The parts (`without_subject`, `layout`, `style_features`) show what moved; `collapse_ratio` whether
it moved onto the training images.
"""

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist
from torch import Tensor

Rows = np.ndarray | Tensor
Distance = Callable[[Rows, Rows], float]


def as_array(features: Rows) -> np.ndarray:
    if isinstance(features, Tensor):
        features = features.detach().cpu().numpy()
    assert features.ndim == 2 and len(features) > 0
    return features.astype(np.float64)


# --------------------------------------------------------------------------------------------------- distances


def gaussian_w2(x: Rows, y: Rows, dims: int | None = 64) -> float:
    """W2 of the Gaussians fitted to features x [N, D] and y [M, D].

        W2^2 = |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x^1/2 S_y S_x^1/2)^1/2)    (Dowson and Landau, 1982)

    No covariance is inverted, so that those of few images need no shrinkage.

    Args:
        dims: the first principal axes of x that both are seen along, at most N - 1; None for the whole space, where the
            distance is symmetric. Along some axes only it is a lower bound of that in the whole space, and what y has
            across them is not seen.
    """
    first, second = as_array(x), as_array(y)
    if dims is not None:
        axes = _principal_axes(first, dims)
        first, second = first @ axes, second @ axes
    root_x, root_y = _root_covariance(first), _root_covariance(second)
    overlap = np.linalg.norm(root_x @ root_y.T, "nuc")  # tr (S_x^1/2 S_y S_x^1/2)^1/2
    spread = (root_x**2).sum() + (root_y**2).sum() - 2 * overlap
    shift = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    return float(np.sqrt(shift + max(spread, 0.0)))


def _principal_axes(x: np.ndarray, dims: int) -> np.ndarray:
    """[D, dims], or as many as N images span."""
    centred = x - x.mean(axis=0)
    return np.linalg.svd(centred, full_matrices=False)[2][: max(1, min(dims, len(x) - 1))].T


def _root_covariance(x: np.ndarray) -> np.ndarray:
    """R [min(N, D), D] with R^T R the covariance of x [N, D]."""
    _, scale, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return scale[:, None] * axes / np.sqrt(max(1, len(x) - 1))


def exact_w2(x: Rows, y: Rows) -> float:
    """W2 of the empirical distributions of x [N, D] and y [M, D], by the network simplex of POT; N and M may differ."""
    import ot  # a second to import

    cost = cdist(as_array(x), as_array(y), "sqeuclidean")
    return float(np.sqrt(max(ot.emd2([], [], cost, numItermax=10**6), 0.0)))


def sliced_w2(x: Rows, y: Rows, num_projections: int = 256, seed: int = 0) -> float:
    """Root mean square of the W2 of x [N, D] and y [M, D] along random lines (Bonneel et al., JMIV 51, 2015).

    A shift by a vector of length a reads about a / sqrt(D).
    """
    import ot

    return float(ot.sliced_wasserstein_distance(as_array(x), as_array(y), n_projections=num_projections, seed=seed))


# ------------------------------------------------------------------------------------------------------- parts


def layout(masks: Tensor) -> np.ndarray:
    """Masks [N, H, W] in [0, 1] -> the subject's boxes [N, 4]: centre x, y and width, height, in the image's sides.

    The box encloses all pixels above 0.5. Where there are none the row is NaN.
    """
    boxes = np.full((len(masks), 4), np.nan)
    for row, mask in enumerate((masks > 0.5).cpu().numpy()):
        if mask.any():
            (left, width), (top, height) = (_extent(mask.any(axis=axis)) for axis in (0, 1))
            boxes[row] = left + width / 2, top + height / 2, width, height
    return boxes


def _extent(line: np.ndarray) -> tuple[float, float]:
    """Where the marked pixels of a line begin and how far they reach, in its length."""
    first, last = np.flatnonzero(line)[[0, -1]]
    return first / len(line), (last + 1 - first) / len(line)


def layout_w2(x: np.ndarray, y: np.ndarray, distance: Distance = exact_w2) -> float:
    """Boxes [N, 4] and [M, 4] of `layout` -> W2 of those found; NaN where a side has none."""
    found_x, found_y = (boxes[~np.isnan(boxes).any(axis=1)] for boxes in (x, y))
    return distance(found_x, found_y) if len(found_x) and len(found_y) else float("nan")


def style_features(images: Tensor, sentences: Tensor) -> Tensor:
    """Features of images [N, D] and of sentences that name styles [S, D] -> their cosines [N, S]."""
    return images @ sentences.T
