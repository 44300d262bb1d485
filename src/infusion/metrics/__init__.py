"""Predictions, features and pictures -> what customizing a model broke, and what it learnt; one file is one metric.

Numbers in, numbers out: no metric knows of methods, training or adapters. Pictures are [N, 3, H, W] in [0, 1].
"""

from infusion.metrics.alignment import Alignment, Nearest, image_alignment, nearest_reference, text_alignment
from infusion.metrics.diversity import class_diversity
from infusion.metrics.facts import (
    FACTS,
    Satisfaction,
    both_present,
    check_wanted,
    satisfied_facts,
    subject_masks,
    two_of,
)
from infusion.metrics.latent_fisher import (
    LatentFisher,
    Probe,
    eps_predictions,
    latent_fisher_divergence,
    outside_subject,
    stratified_timesteps,
)
from infusion.metrics.memorisation import Recalled, recalled
from infusion.metrics.two_samples import chance
from infusion.metrics.wasserstein import (
    STYLE_SENTENCES,
    LayoutDistance,
    collapse_ratio,
    exact_w2,
    gaussian_w2,
    layout,
    layout_w2,
    over_prompts,
    sliced_w2,
    style_features,
    without_subject,
)

__all__ = [
    "FACTS",
    "STYLE_SENTENCES",
    "Alignment",
    "LatentFisher",
    "LayoutDistance",
    "Nearest",
    "Probe",
    "Recalled",
    "Satisfaction",
    "both_present",
    "chance",
    "check_wanted",
    "class_diversity",
    "collapse_ratio",
    "eps_predictions",
    "exact_w2",
    "gaussian_w2",
    "image_alignment",
    "latent_fisher_divergence",
    "layout",
    "layout_w2",
    "nearest_reference",
    "outside_subject",
    "over_prompts",
    "recalled",
    "satisfied_facts",
    "sliced_w2",
    "stratified_timesteps",
    "style_features",
    "subject_masks",
    "text_alignment",
    "two_of",
    "without_subject",
]
