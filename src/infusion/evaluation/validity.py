"""A base's own images, a concept's -> how the metrics answer where the right answer is known."""

import numpy as np
import torch

from infusion import metrics
from infusion.evaluation.evaluate import ConceptImages
from infusion.evaluation.reference import Reference
from infusion.metrics.wasserstein import Features, distances

_NUM_PERMUTATIONS = 200
_NOISE = 0.03


def null_ranks(reference: Reference) -> dict[str, float]:
    """Where the distance between two draws of the base lies among those of random splits of both draws, in [0, 1].

    Seeds are exchanged between the draws at random, the same for all prompts, because a seed is one noise that all
    prompts begin with. Without a difference the rank is uniform. A distance that is not there has no rank.
    """
    num_seeds, prompt_of = reference.plan.drawing.num_seeds, reference.plan.prompt_of
    own, null = (reference.features(some) for some in (reference.images, reference.null_images))
    pooled, observed = Features.joined(own, null), distances(own, null)
    rng = np.random.default_rng(0)
    splits = []
    for _ in range(_NUM_PERMUTATIONS):
        first, second = _split(num_seeds, prompt_of, rng)
        splits.append(distances(pooled.rows(first), pooled.rows(second)))
    return {
        name: sum(split[name] < value for split in splits) / _NUM_PERMUTATIONS if np.isfinite(value) else float("nan")
        for name, value in observed.items()
    }


def _split(num_seeds: int, prompt_of: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two pooled draws of N images, the 2 S seeds of both dealt at random into halves."""
    num_prompts = len(prompt_of) // num_seeds
    row_of = np.arange(2 * len(prompt_of)).reshape(2, num_prompts, num_seeds)
    by_seed = row_of.transpose(0, 2, 1).reshape(2 * num_seeds, num_prompts)  # [2 S, P]
    mixed = by_seed[rng.permutation(2 * num_seeds)]
    return mixed[:num_seeds].T.ravel(), mixed[num_seeds:].T.ravel()


def collapse_where_known(reference: Reference, real: ConceptImages) -> dict[str, float]:
    """The collapse ratio, and the share of copies, of a model that nearly repeats the training images, and of one
    that draws other real images.

    Near copies are the training images, one pixel aside and with a little noise.
    """
    assert real.elsewhere is not None
    clip, num = reference.evaluators.clip, len(reference.images)
    generator = torch.Generator().manual_seed(0)
    near = real.training[torch.arange(num) % len(real.training)].roll(1, dims=-1)
    near = (near + _NOISE * torch.randn(near.shape, generator=generator)).clamp(0, 1)
    base, training = reference.seen(reference.images).features(clip), clip.encode_images(real.training)
    bar = metrics.never_nearer(training, None if real.same_place is None else clip.encode_images(real.same_place))
    found = {}
    for name, images in (("copies", near), ("real", real.elsewhere)):
        features = clip.encode_images(images)
        nearest = metrics.nearest_reference(features, training).cosine
        found[f"collapse_of_{name}"] = metrics.collapse_ratio(features, base, training)
        found[f"copied_of_{name}"] = (nearest > bar).float().mean().item()
    return found
