"""Laws that every metric keeps: nothing changed is nothing measured, order does not matter, symmetry where there is."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

import infusion.metrics as metrics
from infusion.metrics.alignment import text_alignment
from infusion.metrics.collapse import collapse_ratio
from infusion.metrics.distances import exact_w2, gaussian_w2, layout_w2, sliced_w2
from infusion.metrics.diversity import class_diversity
from infusion.metrics.encoders import load_clip, load_image_encoder
from infusion.metrics.facts import satisfied_facts, subject_masks
from infusion.metrics.identity import image_alignment
from infusion.metrics.latent_fisher import Probe, latent_fisher_divergence, stratified_timesteps
from infusion.metrics.metric import without_subject
from infusion.metrics.prompts import over_prompts
from infusion.toybox.judges import load_judges
from infusion.toybox.render import render
from infusion.toybox.scene import concept_scene, individual

FOLDER = Path(metrics.__file__).parent


def draw(seed, num=48, dims=12):
    return torch.randn(num, dims, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.2, 2, dims)


def in_boxes(features):
    """Four features as boxes with two that were not found."""
    boxes = features[:, :4].double().numpy().copy()
    boxes[[3, 11]] = np.nan
    return boxes


def whole_gaussian_w2(x, y):
    return gaussian_w2(x, y, dims=None)


def boxes_w2(x, y):
    return layout_w2(in_boxes(x), in_boxes(y))


def fisher(x, y):
    """The divergence of predictions that are the features."""
    noise = DDPMScheduler()
    probe = Probe(torch.zeros(8, 3, 4, 4), torch.arange(8) // 2)
    eps_0, eps_th = (some.reshape(8, 6, 3, 2, 2) for some in (x, y))
    timesteps = stratified_timesteps(noise, probe, 6, seed=0)
    figures = latent_fisher_divergence(eps_0, eps_th, eps_0 + 1, probe, noise, timesteps).figures()
    return figures["kl"].value


DISTANCES = [gaussian_w2, whole_gaussian_w2, exact_w2, sliced_w2, boxes_w2, fisher]
BETWEEN_SETS = [gaussian_w2, whole_gaussian_w2, exact_w2, sliced_w2]


@pytest.mark.parametrize("distance", DISTANCES)
def test_base_against_base_is_zero(distance):
    base = draw(0)
    assert distance(base, base) == pytest.approx(0, abs=1e-6)
    assert distance(base, draw(1)) > 0.1


@pytest.mark.parametrize("distance", [d for d in DISTANCES if d is not gaussian_w2])
def test_distances_are_symmetric(distance):
    """That along the first's principal axes is not: the axes are the first's."""
    x, y = draw(0), 1.5 * draw(1) + 0.3
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-6)


@pytest.mark.parametrize("distance", BETWEEN_SETS)
def test_distances_between_sets_know_no_order(distance):
    x, y = draw(0), draw(1) + 0.3
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert distance(x[mixed], y) == pytest.approx(distance(x, y), rel=1e-6)
    assert distance(x, y[mixed]) == pytest.approx(distance(x, y), rel=1e-6)


@pytest.mark.parametrize("distance", BETWEEN_SETS)
def test_order_and_kind_of_features_do_not_matter(distance):
    x, y = draw(0), draw(1) + 0.3
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert distance(x[mixed], y[mixed]) == pytest.approx(distance(x, y), rel=1e-6)
    assert distance(x.numpy(), y.numpy()) == distance(x, y)


@pytest.mark.parametrize("distance", BETWEEN_SETS)
def test_the_base_has_not_collapsed(distance):
    base, training = draw(0), draw(1, num=4) + 3
    assert collapse_ratio(base, base, training, distance) == 1


def test_diversity_is_the_mean_over_pairs():
    features = draw(0, num=9)
    unit = torch.nn.functional.normalize(features, dim=1)
    pairs = [1 - (unit[i] @ unit[j]).item() for i in range(9) for j in range(i)]
    assert class_diversity(features) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert class_diversity(features.flip(0)) == pytest.approx(class_diversity(features))
    assert class_diversity(3 * features) == pytest.approx(class_diversity(features))
    assert class_diversity(features[:1].expand(5, -1)) == pytest.approx(0, abs=1e-12)
    assert class_diversity(torch.eye(4)) == pytest.approx(1)
    figure = over_prompts(lambda rows: class_diversity(features[rows]), torch.arange(9))
    assert figure.low < figure.value < figure.high and figure.num == 9


@pytest.fixture(scope="module")
def pictures():
    who = individual(500_000, "cat")
    return render(
        [concept_scene(who, n, place) for n, place in enumerate(("meadow", "snow", "beach", "forest"))]
    ).images


def test_pictures_are_judged_one_by_one(pictures):
    """An image's own number does not depend on its place or its company."""
    clip, encoder, judges = load_clip("toybox-a"), load_image_encoder("toybox-a"), load_judges("a")
    texts = ["a cat in a meadow", "a cat in the snow", "a cat on a beach", "a cat in a forest"]
    wanted = [{"class": "cat", "background": place} for place in ("meadow", "snow", "beach", "meadow")]
    order = [2, 0, 3, 1]
    numbers = {
        "text": lambda at: text_alignment(clip.encode_images(pictures[at]), clip.encode_texts([texts[i] for i in at])),
        "image": lambda at: image_alignment(*(encoder.encode_images(pictures[some]) for some in (at, [0, 1]))),
        "facts": lambda at: satisfied_facts(judges, pictures[at], [wanted[i] for i in at]).satisfied,
        "masks": lambda at: subject_masks(judges, pictures[at], "cat"),
        "without": lambda at: without_subject(pictures[at], pictures[at].mean(dim=1)),
    }
    for name, number in numbers.items():
        together = number([0, 1, 2, 3])
        torch.testing.assert_close(number(order), together[order], atol=1e-5, rtol=1e-5, msg=name)
        torch.testing.assert_close(number([3]), together[3:], atol=1e-5, rtol=1e-5, msg=name)
        assert len(together.flatten().unique()) > 1, name


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_a_metric_knows_of_no_method(file):
    below = {"metrics", "base", "foreign", "toybox", "intervals", "errors"}
    modules = {
        node.module.split(".")[1]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("infusion.")
    }
    assert modules <= below
