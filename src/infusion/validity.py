"""A base's own pictures, a concept's -> how the metrics answer where the right answer is known."""

import numpy as np
import torch

from infusion import metrics
from infusion.evaluation import ConceptPictures, Features, Reference, distances

_NUM_PERMUTATIONS = 200


def null_ranks(reference: Reference) -> dict[str, float]:
    """Where the distance between two draws of the base lies among those of random splits of both draws, in [0, 1].

    Pictures of one prompt are exchanged between the draws at random; without a difference the rank is uniform, so that
    it is above 0.95 for one in twenty.
    """
    first, second = reference.features, Features.of(reference, reference.null_images)
    prompt_of = reference.plan.prompt_of
    observed = distances(first, second)
    rng = np.random.default_rng(0)
    below = dict.fromkeys(observed, 0)
    pooled = Features.joined(first, second)
    for _ in range(_NUM_PERMUTATIONS):
        rows = _split(prompt_of, rng)
        for name, distance in distances(pooled.rows(rows[0]), pooled.rows(rows[1])).items():
            below[name] += distance < observed[name]
    return {name: count / _NUM_PERMUTATIONS for name, count in below.items()}


def _split(prompt_of: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two pooled draws, split at random prompt by prompt into halves of equal size."""
    halves: tuple[list[int], list[int]] = ([], [])
    for prompt in np.unique(prompt_of):
        own = np.flatnonzero(prompt_of == prompt)
        mixed = rng.permutation(np.concatenate([own, own + len(prompt_of)]))
        halves[0].extend(mixed[: len(own)])
        halves[1].extend(mixed[len(own) :])
    return np.array(halves[0]), np.array(halves[1])


def collapse_where_known(reference: Reference, real: ConceptPictures) -> dict[str, float]:
    """The collapse ratio of a model that repeats the training pictures, and of one that draws other real pictures."""
    assert real.elsewhere is not None
    clip = reference.witnesses.clip
    base, training, elsewhere = (clip.encode_images(some) for some in (reference.images, real.training, real.elsewhere))
    copies = training[torch.arange(len(base)) % len(training)]
    return {
        "collapse_of_copies": metrics.collapse_ratio(copies, base, training),
        "collapse_of_real": metrics.collapse_ratio(elsewhere, base, training),
    }
