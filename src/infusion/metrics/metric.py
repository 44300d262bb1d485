"""Images, predictions, encoders -> the evidence of one evaluation; what a metric declares: measures, needs, function.

A file of this folder that defines `METRIC` is a metric: it is measured, tabulated and explained from there.
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from infusion.intervals import Figure
from infusion.metrics.encoders import Clip, ImageEncoder
from infusion.toybox.judges import Judges

if TYPE_CHECKING:
    from infusion.metrics.latent_fisher import Predictions

FIDELITY, FACTS = "fidelity", "facts"
SPECIFIC, AGNOSTIC, RELATIVE, KL = "concept-specific", "concept-agnostic", "relative divergence", "KL divergence"
GROUPS = (FIDELITY, FACTS, SPECIFIC, AGNOSTIC, RELATIVE, KL)
"""In the order of tables; those of a metric that has others come last."""

FindMasks = Callable[[Tensor], Tensor]
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Measure:
    """What one number is.

    better: which way is good; None where neither is. is_share: it lies between 0 and 1. place: where it stands in its
    group, the least first. unchanged: what a model that was not changed has, whatever the concept; None where that
    depends on the concept.
    """

    name: str
    label: str
    sentence: str
    better: Literal["higher", "lower"] | None
    group: str
    is_share: bool = False
    place: int = 100
    unchanged: float | None = None


class Images:
    """Images [N, 3, H, W] in [0, 1], and what is seen in them: each encoder looks at them once.

    find_subject: where the subject is, [N, H, W] in [0, 1]. find_foreground: where anything but the background is.
    """

    def __init__(
        self, tensor: Tensor, find_subject: FindMasks | None = None, find_foreground: FindMasks | None = None
    ) -> None:
        self.tensor = tensor
        self._find_subject = find_subject
        self._find_foreground = find_foreground
        self._encoded: dict[int, tuple[Any, Tensor]] = {}  # with the encoder, whose id nothing else takes meanwhile

    def features(self, encoder: Clip | ImageEncoder) -> Tensor:
        """[N, D] of unit length."""
        if id(encoder) not in self._encoded:
            self._encoded[id(encoder)] = encoder, encoder.encode_images(self.tensor)
        return self._encoded[id(encoder)][1]

    @property
    def shows_where(self) -> bool:
        """Whether it is known where the subject is."""
        return self._find_subject is not None and self._find_foreground is not None

    @cached_property
    def subject(self) -> Tensor:
        assert self._find_subject
        return self._find_subject(self.tensor)

    @cached_property
    def background(self) -> "Images":
        """The same, the foreground in the background's mean colour."""
        assert self._find_foreground
        return Images(without_subject(self.tensor, self._find_foreground(self.tensor)))


def without_subject(images: Tensor, masks: Tensor) -> Tensor:
    """Images [N, 3, H, W], the subject's masks [N, H, W] -> images, the subject in its background's mean colour.

    Encode these for a distance between backgrounds. Masks may be soft; an image that is all subject becomes black.
    """
    subject = masks[:, None].to(images)
    left = (1 - subject).sum(dim=(2, 3), keepdim=True)
    color = (images * (1 - subject)).sum(dim=(2, 3), keepdim=True) / left.clamp(min=1e-6)
    return torch.lerp(images, color.expand_as(images), subject)


class Need(Enum):
    """What an evaluation may lack; images of the prompts, the base's beside them, and encoders are always there."""

    TRAINING_IMAGES = "the real images that were trained on"
    OTHER_IMAGES = "other real images of the concept"
    CLASS_IMAGES = "images of the plain class noun"
    UNGUIDED_IMAGES = "images of the words for the subject alone, drawn without guidance"
    SUBJECT = "where the subject is in images"
    JUDGES = "the toybox's judges, and the facts that prompts ask for"
    PREDICTIONS = "what the model and its base predict at the probes"


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that one customized model is measured by.

    images, base_images: the customized model's and its base's, of the same prompts and seeds. prompt_of: [N] the prompt
    of each. texts, wanted: what each was asked to show, the class noun in the concept's place: in words, and as facts.
    class_images, base_class_images: of the plain class noun. training, elsewhere, same_place: real images of the
    concept: trained on; others in other places; others in the place of those. unguided: of the words for the subject
    alone. predict: what the models predict, by the name of the probe; called when it is first asked for.
    """

    images: Images
    base_images: Images
    prompt_of: np.ndarray
    texts: Sequence[str]
    clip: Clip
    encoder: ImageEncoder
    wanted: Sequence[Mapping[str, str | int]] = ()
    judges: Judges | None = None
    class_images: Images | None = None
    base_class_images: Images | None = None
    training: Images | None = None
    elsewhere: Images | None = None
    same_place: Images | None = None
    unguided: Images | None = None
    predict: "Callable[[], Mapping[str, Predictions]] | None" = None
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def met(self) -> frozenset[Need]:
        """The needs that this evidence meets."""
        there = {
            Need.TRAINING_IMAGES: self.training is not None,
            Need.OTHER_IMAGES: self.elsewhere is not None,
            Need.CLASS_IMAGES: self.class_images is not None and self.base_class_images is not None,
            Need.UNGUIDED_IMAGES: self.unguided is not None,
            Need.SUBJECT: self.images.shows_where and self.base_images.shows_where,
            Need.JUDGES: self.judges is not None,
            Need.PREDICTIONS: self.predict is not None,
        }
        return frozenset(need for need, met in there.items() if met)

    def once(self, make: "Callable[[Evidence], _Made]") -> _Made:
        """What `make` makes of this evidence, for everyone who asks."""
        if make not in self._made:
            self._made[make] = make(self)
        made: _Made = self._made[make]
        return made


@dataclass(frozen=True)
class Metric:
    """What one file of this folder measures.

    compute: called with evidence that meets the needs; gives figures by the names of the measures, or fewer where the
    evidence does not tell.
    """

    measures: tuple[Measure, ...]
    needs: frozenset[Need]
    compute: Callable[[Evidence], dict[str, Figure]]


def find_metrics() -> dict[str, Metric]:
    """The metrics of this folder, by the names of their files."""
    import infusion.metrics as folder

    names = sorted(module.name for module in pkgutil.iter_modules(folder.__path__))
    modules = {name: import_module(f"{folder.__name__}.{name}") for name in names}
    return {name: module.METRIC for name, module in modules.items() if hasattr(module, "METRIC")}


def measure(evidence: Evidence, metrics: Mapping[str, Metric]) -> dict[str, Figure]:
    """The figures of all metrics whose needs are met."""
    found: dict[str, Figure] = {}
    for metric in metrics.values():
        if metric.needs <= evidence.met:
            found |= metric.compute(evidence)
    return found
