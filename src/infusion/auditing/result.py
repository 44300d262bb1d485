"""Measures of a customized model + the base model's own -> a result that holds each against the other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from infusion.evaluation.evaluate import Evaluation
from infusion.evaluation.plans import Plan
from infusion.intervals import Figure, as_share
from infusion.metrics.catalogue import measure_of
from infusion.metrics.memorisation import Recalled
from infusion.training.stopping import Check


class Plain(NamedTuple):
    """Images [M, 3, H, W] drawn from the words for the subject alone, and the training images they are like."""

    images: Tensor
    found: Recalled


@dataclass(frozen=True)
class AuditResult:
    """Everything that is reported of one customized model.

    name: what tables call it. about: what is known of the customization, by the keys of an adapter file's description;
    "words" where prompts say these instead of a placeholder. own, untouched: measures of it, and of the base model with
    the class noun in its place, with the same prompts and seeds. nulls: what finite samples alone make of a distance.
    recalled: what it draws from the words for the subject alone; None without training: its real images, where they
    were given. evaluators: who looked, by name.
    """

    name: str
    about: Mapping[str, Any]
    file_name: str
    file_bytes: int
    num_parameters: int
    base: str
    plan: Plan
    own: Evaluation
    untouched: Evaluation
    nulls: Mapping[str, float]
    recalled: Plain | None
    training: Sequence[Image.Image]
    evaluators: Mapping[str, str | None]
    seconds: float

    @property
    def placeholder(self) -> str:
        """What stands in prompts for the concept."""
        return str(self.about.get("words") or f"<{self.about['concept_name']}>")

    @property
    def class_noun(self) -> str:
        return str(self.about["class_noun"])

    def figure(self, name: str) -> Figure | None:
        """A measure; None where it was not taken, or could not be."""
        figure = self.own.measures.get(name)
        if figure is None or not math.isfinite(figure.value):
            return None
        return as_share(figure) if measure_of(name).is_share else figure

    def beside(self, name: str) -> float | None:
        """What to hold a measure against: a distance against chance, anything else against the base model's own."""
        base = self.untouched.measures.get(name)
        value = self.nulls.get(name, base.value if base else None)
        if value is None or not math.isfinite(value):
            return None
        return value if name.startswith("lfd") else round(value, 6)  # the base's identity is 0 by definition


@dataclass(frozen=True)
class Curve:
    """Checkpoints of one run, by step, and the one to keep."""

    checks: Sequence[Check]
    kept: Check
