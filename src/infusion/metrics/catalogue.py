"""The metrics of this folder -> the catalogue of measures: what each number is, and how it is to be read."""

from collections.abc import Mapping

from infusion.metrics.facts import fact_measure
from infusion.metrics.metric import (
    AGNOSTIC,
    FACTS,
    FIDELITY,
    GROUPS,
    KL,
    RELATIVE,
    SPECIFIC,
    Measure,
    Metric,
    Need,
    find_metrics,
)

__all__ = [
    "AGNOSTIC",
    "AUDIT_MEASURES",
    "BASE",
    "BY_NAME",
    "FACTS",
    "FIDELITY",
    "KL",
    "MEASURES",
    "METRICS",
    "NOTES",
    "NOT_METHODS",
    "NULL",
    "PAIR_MEASURES",
    "REFERENCE",
    "RELATIVE",
    "ROUNDING",
    "SPECIFIC",
    "UNCHANGED",
    "Measure",
    "arrow",
    "measure_of",
    "tabulated",
]

BASE, NULL = "base", "null"
"""Rows of every comparison that are no methods: the base itself, and the base with other seeds."""
NOT_METHODS = (BASE, NULL)
REFERENCE = "infusion"
"""The row that the others are compared with, where it is there."""
ROUNDING = 1e-9  # a float32 prediction computed in another batch differs by some 1e-6, its square by 1e-12


def tabulated(metrics: Mapping[str, Metric]) -> tuple[Measure, ...]:
    """The measures of metrics in the order of tables: by group, then by place."""
    measures = [measure for metric in metrics.values() for measure in metric.measures]
    groups = list(dict.fromkeys([*GROUPS, *(measure.group for measure in measures)]))
    return tuple(sorted(measures, key=lambda measure: (groups.index(measure.group), measure.place)))


METRICS: Mapping[str, Metric] = find_metrics()
"""By the names of their files."""
_OF_AUDITS = {name: metric for name, metric in METRICS.items() if Need.UNGUIDED_IMAGES in metric.needs}
MEASURES = tabulated({name: metric for name, metric in METRICS.items() if name not in _OF_AUDITS})
AUDIT_MEASURES = tabulated(_OF_AUDITS)
"""Of an audit alone: only there is anything drawn without guidance."""
PAIR_MEASURES = (
    Measure("both_present", "both present", "Share of images that show both concepts.", "higher", "pairs", True),
    Measure(
        "identity_own",
        "own identity",
        "Likeness of each subject to its own concept, where both are there.",
        "higher",
        "pairs",
    ),
    Measure(
        "identity_other",
        "other's identity",
        "Likeness of each subject to the other concept, where both are there.",
        "lower",
        "pairs",
    ),
    Measure(
        "leak",
        "leak",
        "Likeness to the other concept, less what real images, cut out likewise, have of it.",
        "lower",
        "pairs",
    ),
)

BY_NAME: Mapping[str, Measure] = {measure.name: measure for measure in (*MEASURES, *AUDIT_MEASURES)}


def measure_of(name: str) -> Measure:
    """What a number is; a fact that only a person's own prompts ask for is reported by its name."""
    kind = name.removeprefix("facts_").replace("_", " ")
    return BY_NAME.get(name) or fact_measure(name.removeprefix("facts_"), kind)


UNCHANGED = {name: measure.unchanged for name, measure in BY_NAME.items() if measure.unchanged is not None}
"""What a model that was not changed has, whatever the individual."""
NOTES: Mapping[str, str] = {
    AGNOSTIC: (
        "S1, S2 and S3 are exactly 0 by construction for methods that act on their own token alone: a correctness "
        "test, not a win. S4 is the one that tells. The divergence is a distance of scores and is not calibrated to "
        "marginal quality: read it beside the distances of images."
    ),
    SPECIFIC: "Not learning is the optimum of every distance to the base model: read the distances beside identity.",
}
"""How the measures of a group are to be read."""


def arrow(measure: Measure) -> str:
    """Which way is good."""
    return {"higher": " ↑", "lower": " ↓", None: ""}[measure.better]
