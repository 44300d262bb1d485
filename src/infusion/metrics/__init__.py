"""Predictions, features and images -> what customizing a model broke, and what it learnt; one file is one metric.

Numbers in, numbers out: no metric knows of methods, training or adapters. Images are [N, 3, H, W] in [0, 1].
"""

from infusion.metrics.alignment import text_alignment
from infusion.metrics.collapse import collapse_ratio
from infusion.metrics.copies import Nearest, nearest_reference, never_nearer
from infusion.metrics.distances import (
    exact_w2,
    gaussian_w2,
    layout,
    layout_w2,
    sliced_w2,
    style_features,
)
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
from infusion.metrics.identity import Alignment, image_alignment
from infusion.metrics.latent_fisher import (
    LatentFisher,
    Predictions,
    Probe,
    eps_predictions,
    latent_fisher_divergence,
    outside_subject,
    stratified_timesteps,
)
from infusion.metrics.memorisation import Recalled, recalled
from infusion.metrics.metric import Evidence, Images, Measure, Metric, Need, without_subject
from infusion.metrics.prompts import mean_over_prompts, over_prompts
from infusion.metrics.two_samples import chance
from infusion.metrics.wasserstein import STYLE_SENTENCES

__all__ = [
    "FACTS",
    "STYLE_SENTENCES",
    "Alignment",
    "Evidence",
    "Images",
    "LatentFisher",
    "Measure",
    "Metric",
    "Nearest",
    "Need",
    "Predictions",
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
    "mean_over_prompts",
    "nearest_reference",
    "never_nearer",
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
