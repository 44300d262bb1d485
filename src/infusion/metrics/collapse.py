"""Features of images, of the base's and of the training images -> whether the images collapsed onto the latter."""

from infusion.intervals import Figure
from infusion.metrics.distances import Distance, Rows, exact_w2
from infusion.metrics.metric import SPECIFIC, Evidence, Measure, Metric, Need
from infusion.metrics.prompts import over_prompts


def collapse_ratio(customized: Rows, base: Rows, training: Rows, distance: Distance = exact_w2) -> float:
    """W2(customized, training) / W2(base, training) of features [N, D], [M, D], [K, D].

    About 1: the concept's images are as far from the training images as the base's of the class noun. Small: they are
    copies.
    """
    return distance(customized, training) / distance(base, training)


def _compute(evidence: Evidence) -> dict[str, Figure]:
    assert evidence.training
    own, base, training = (
        some.features(evidence.clip) for some in (evidence.images, evidence.base_images, evidence.training)
    )
    return {"collapse": over_prompts(lambda rows: collapse_ratio(own[rows], base[rows], training), evidence.prompt_of)}


METRIC = Metric(
    (
        Measure(
            "collapse",
            "collapse",
            "Distance to the training images over the base model's distance to them: small means copying, and some "
            "approach is what learning is, so neither way is called better.",
            None,
            SPECIFIC,
            place=80,
        ),
    ),
    frozenset({Need.TRAINING_IMAGES}),
    _compute,
)
