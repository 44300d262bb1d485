"""Distances between sets of images against closed forms, and the parts that they are taken apart into."""

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from infusion.intervals import jackknife
from infusion.metrics.collapse import collapse_ratio
from infusion.metrics.distances import exact_w2, gaussian_w2, layout, layout_w2, sliced_w2, style_features
from infusion.metrics.encoders import load_clip
from infusion.metrics.metric import without_subject
from infusion.metrics.prompts import over_prompts
from infusion.metrics.wasserstein import STYLE_SENTENCES
from infusion.toybox.render import render
from infusion.toybox.scene import BACKGROUNDS, concept_scene, individual


def normal(num, dims, seed=0):
    return np.random.default_rng(seed).normal(size=(num, dims))


def whitened(num, dims, seed=0):
    """A sample whose mean is 0 and whose covariance is the identity, exactly."""
    x = normal(num, dims, seed)
    x = x - x.mean(axis=0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T


def test_gaussians_have_the_closed_form():
    """With commuting covariances diag(a^2), diag(b^2): |m|^2 + |a - b|^2."""
    a, b, m = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0]), np.array([0.3, -1.0, 2.0])
    x, y = whitened(50, 3) * a, whitened(70, 3, seed=1) * b + m
    assert gaussian_w2(x, y, dims=None) == pytest.approx(np.sqrt((m**2).sum() + ((a - b) ** 2).sum()))
    assert gaussian_w2(x, y, dims=None) == pytest.approx(gaussian_w2(x, y))  # 3 axes are all there are


def test_gaussians_agree_with_pot():
    x, y = normal(60, 5) @ normal(5, 5, seed=2), normal(80, 5, seed=1) @ normal(5, 5, seed=3) + 0.5
    expected = ot.gaussian.bures_wasserstein_distance(x.mean(0), y.mean(0), np.cov(x.T), np.cov(y.T))
    assert gaussian_w2(x, y, dims=None) == pytest.approx(expected)


def test_principal_axes_are_those_of_the_first_and_give_a_lower_bound():
    x, y = normal(100, 10) * np.arange(10, 0, -1), normal(100, 10, seed=1) + 1
    distances = [gaussian_w2(x, y, dims) for dims in (1, 4, 8, None)]
    assert distances == sorted(distances) and distances[0] < distances[-1]
    across, along = np.eye(10)[9], np.linalg.svd(x - x.mean(axis=0))[2][0]
    assert gaussian_w2(x, x + 3 * along, dims=1) == pytest.approx(3)
    assert gaussian_w2(x, x + 3 * across, dims=1) < 0.5  # what y has across the axes is not seen
    flat, tall = whitened(50, 2) * [5, 0.1], whitened(50, 2, seed=1) * [0.1, 5] + [3, 0]
    assert gaussian_w2(flat, tall, dims=1) == pytest.approx(np.hypot(3, 4.9), rel=1e-3)
    few = normal(6, 400)
    assert gaussian_w2(few, few + 0.1) < 0.1 * 20 + 1e-6  # 5 axes of 400: defined, and no more than the shift


@pytest.mark.parametrize("distance", [gaussian_w2, exact_w2, sliced_w2])
def test_a_known_shift_is_recovered(distance):
    x, shift = normal(80, 4), np.array([3.0, 0, 4.0, 0])
    assert distance(x, x) == pytest.approx(0, abs=1e-6)
    expected = 5 / np.sqrt(4) if distance is sliced_w2 else 5
    assert distance(x, x + shift) == pytest.approx(expected, rel=0.06 if distance is sliced_w2 else 1e-6)


@pytest.mark.parametrize("distance", [gaussian_w2, exact_w2, sliced_w2])
def test_distances_are_of_the_features_unit(distance):
    x, y = normal(40, 3), normal(40, 3, seed=1) + 1
    assert distance(10 * x, 10 * y) == pytest.approx(10 * distance(x, y))


def test_on_a_line_the_exact_distance_is_that_of_the_sorted():
    x, y = normal(50, 1), 2 * normal(50, 1, seed=1) + 1
    expected = np.sqrt(((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2).mean())
    assert exact_w2(x, y) == pytest.approx(expected)
    assert sliced_w2(x, y) == pytest.approx(expected)


def test_exact_distances_are_assignments():
    x, y = normal(30, 6), normal(30, 6, seed=1)
    cost = cdist(x, y, "sqeuclidean")
    assert exact_w2(x, y) == pytest.approx(np.sqrt(cost[linear_sum_assignment(cost)].mean()))
    assert exact_w2(x, np.concatenate([x, x])) == pytest.approx(0, abs=1e-6)  # the same distribution, twice the points
    assert exact_w2(np.zeros((3, 1)), np.array([[0.0], [2.0]])) == pytest.approx(np.sqrt(2))


def test_a_copied_training_picture_lights_up():
    training, base = normal(4, 8) + 3, normal(60, 8, seed=1)
    learnt = normal(60, 8, seed=2) + 3
    copies = np.repeat(training, 15, axis=0) + 0.01 * normal(60, 8, seed=3)
    ratios = [collapse_ratio(some, base, training) for some in (base, learnt, copies)]
    assert ratios[0] == 1 > ratios[1] > 0.2 > 0.01 > ratios[2]


def test_the_jackknife_of_a_mean_is_students_interval():
    """Its standard error is that of the mean: s / sqrt(n); t of 9 degrees of freedom is 2.262."""
    values = np.random.default_rng(0).normal(2, 3, size=10)
    found = jackknife(lambda kept: float(values[kept].mean()), 10)
    half = 2.262157 * values.std(ddof=1) / np.sqrt(10)
    assert found == pytest.approx((values.mean(), values.mean() - half, values.mean() + half, 10))
    with pytest.raises(ValueError):
        jackknife(lambda kept: 0.0, 1)


def test_prompts_are_left_out_whole():
    prompt_of, seen = np.array([7, 3, 7, 5, 3, 3]), []

    def num(rows):
        seen.append(prompt_of[rows].tolist())
        return float(len(rows))

    figure = over_prompts(num, prompt_of)
    assert seen == [prompt_of.tolist(), [7, 7, 5], [7, 3, 7, 3, 3], [3, 5, 3, 3]]
    assert figure.value == 6 and figure.num == 3 and figure.low < 6 < figure.high


def test_the_jackknife_covers_a_shift():
    x, prompt_of = normal(80, 3), np.repeat(np.arange(10), 8)
    y = x + np.repeat(1 + 0.2 * normal(10, 3, seed=1), 8, axis=0)
    figure = over_prompts(lambda rows: gaussian_w2(x[rows], y[rows]), prompt_of)
    assert figure.low < np.sqrt(3) < figure.high and figure.high - figure.low < 1
    assert figure.value == gaussian_w2(x, y)


def boxes(*corners, size=20):
    """Masks [N, size, size] of filled boxes (left, top, width, height) in pixels."""
    masks = torch.zeros(len(corners), size, size)
    for mask, (left, top, width, height) in zip(masks, corners, strict=True):
        mask[top : top + height, left : left + width] = 0.9
    return masks


def test_drawn_boxes_are_laid_out():
    masks = boxes((0, 0, 20, 20), (5, 2, 4, 6), (0, 0, 0, 0))
    masks[1, 0, 0] = 0.4  # below half: not seen
    found = layout(masks)
    np.testing.assert_allclose(found[:2], [[0.5, 0.5, 1, 1], [0.35, 0.25, 0.2, 0.3]])
    assert np.isnan(found[2]).all()


def test_layouts_are_compared_where_something_was_found():
    x = layout(boxes((2, 2, 4, 4), (6, 6, 4, 4), (0, 0, 0, 0), (0, 0, 0, 0)))
    y = layout(boxes((12, 6, 4, 4), (8, 2, 4, 4)))
    assert layout_w2(x, y) == pytest.approx(0.3)  # all moved by 6 of 20 pixels to the right
    assert np.isnan(layout_w2(x[2:], y))


def test_the_subject_leaves_no_trace_in_the_background():
    masks = boxes((5, 2, 4, 6), (0, 0, 20, 20))
    backdrop = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    inside = masks[:, None] > 0
    red, blue = (
        torch.where(inside, torch.tensor(color).view(3, 1, 1), backdrop) for color in ([1.0, 0, 0], [0, 0, 1.0])
    )
    hard = inside[:, 0].float()
    filled = without_subject(red, hard)
    torch.testing.assert_close(filled, without_subject(blue, hard))
    left = ~inside[0, 0]
    torch.testing.assert_close(filled[0][:, left], backdrop[0][:, left])
    torch.testing.assert_close(filled[0, :, 3, 6], backdrop[0][:, left].mean(dim=1))
    assert filled[1].abs().max() == 0


def test_styles_are_told_apart():
    styles = ("photo", "sketch", "cartoon", "watercolor")
    who = individual(500_000, "cat")
    clip = load_clip("toybox-a")
    features = [
        style_features(
            clip.encode_images(render([concept_scene(who, n, BACKGROUNDS[n], style) for n in range(4)]).images),
            clip.encode_texts(STYLE_SENTENCES),
        )
        for style in styles
    ]
    assert features[0].shape == (4, 4)
    same = exact_w2(features[0][:2], features[0][2:])
    assert min(exact_w2(features[0], other) for other in features[1:]) > same
    for column in range(1, 4):
        assert features[column][:, column].mean() > features[0][:, column].mean()
