"""What an audit measured of one customized model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from infusion.evaluation.evaluate import Evaluation
from infusion.evaluation.plans import Plan
from infusion.intervals import Figure, as_share
from infusion.metrics import Recalled
from infusion.metrics.catalogue import ROUNDING, measure_of
from infusion.training.stopping import Check

NEEDS_PICTURES = "This takes real pictures of the subject: give the folder it was trained on, --pictures FOLDER."
TOO_ALIKE = (
    "The real pictures and the base model’s are too alike to make a scale of: give other pictures of the subject, or "
    "another --encoder."
)


class Plain(NamedTuple):
    """Pictures [M, 3, H, W] drawn from the words for the subject alone, and the training pictures they are like."""

    images: Tensor
    found: Recalled


@dataclass(frozen=True)
class AuditResult:
    """Everything that is told of one customized model.

    name: what tables call it. about: what is known of the customization, by the keys of an adapter file's description;
    "words" where prompts say these instead of a placeholder. own, untouched: measures of it, and of the base model with
    the class noun in its place, with the same prompts and seeds. nulls: what finite samples alone make of a distance.
    recalled: what it draws from the words for the subject alone; None without training: its real pictures, where they
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


PARTS = {"w2_background": "background", "w2_layout": "layout", "w2_style": "style"}


def format_figure(figure: Figure) -> str:
    """ "0.62 (0.51 to 0.70)"."""
    if not math.isfinite(figure.low) or figure.low == figure.high:
        return format_number(figure.value)
    return f"{format_number(figure.value)} ({format_number(figure.low)} to {format_number(figure.high)})"


def format_number(value: float) -> str:
    """Three digits; what only rounding made is told as such, and 0 is exactly zero."""
    if value == 0:
        return "0"
    if abs(value) <= ROUNDING:
        return "<1e−9"
    size = abs(value)
    decimals = max(0, 2 - math.floor(math.log10(size)))
    text = f"{size:.{decimals}f}" if size >= 1e-4 else f"{size:.3g}".replace("e-0", "e−").replace("e-", "e−")
    return ("−" if value < 0 else "") + text
