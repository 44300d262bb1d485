"""Images of the toybox, the facts their prompts ask for -> which of them hold, read by the toybox's judges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infusion.errors import UserError, nearest
from infusion.intervals import Figure, share
from infusion.metrics import metric
from infusion.metrics.metric import Evidence, Measure, Metric, Need
from infusion.metrics.prompts import mean_over_prompts
from infusion.toybox.judges import Facts, Judges
from infusion.toybox.scene import BACKGROUNDS, CLASSES, COLORS, MAX_TOYS, RELATIONS, STYLES, TIMES

FACTS: dict[str, tuple[str | int, ...]] = {
    "class": tuple(CLASSES),
    "color": tuple(COLORS),
    "background": BACKGROUNDS,
    "style": STYLES,
    "time": TIMES,
    "count": tuple(range(1, MAX_TOYS + 1)),
    "second": tuple(CLASSES),
    "relation": RELATIONS,
}
"""What a prompt may ask for, and the values. "color" is that of the class; "second" is another toy that must be seen
beside the class, and "relation" how the class stands to it. What a toy wears is not asked: of the accessories in
renders the judges see half."""

Wanted = Mapping[str, str | int]


@dataclass(frozen=True)
class Satisfaction:
    """What was asked of N images, and what of it holds; columns are those of `FACTS`.

    asked: [N, K] bool. holds: [N, K] bool, False where not asked.
    """

    asked: Tensor
    holds: Tensor

    @property
    def satisfied(self) -> Tensor:
        """The share of its facts that each image satisfies, [N]; NaN for one that was asked for none."""
        return self.holds.sum(dim=1) / self.asked.sum(dim=1)

    def figures(self) -> dict[str, Figure]:
        """For each fact that was asked for, the share of images where it holds, with its interval."""
        columns = zip(FACTS, self.asked.T, self.holds.T, strict=True)
        return {fact: share(holds[asked].tolist()) for fact, asked, holds in columns if asked.any()}


def satisfied_facts(judges: Judges, images: Tensor, wanted: Sequence[Wanted]) -> Satisfaction:
    """Ask the judges whether images [N, 3, H, W] show the facts wanted of each, by the names of `FACTS`.

    A class holds where a toy of it is seen, also beside others. "next to" holds on either side.

    Raises:
        UserError: a fact or value that the toybox does not have, a color or a second toy without the class, a second
            toy of the same class (ask for the count), or a relation without both toys.
    """
    assert len(images) == len(wanted)
    for facts in wanted:
        check_wanted(facts)
    read = judges.read(images)
    columns = {
        "background": _equal(wanted, "background", read.background()),
        "style": _equal(wanted, "style", read.style()),
        "time": _equal(wanted, "time", read.time()),
        "count": _equal(wanted, "count", read.count()),
        "class": _seen(read, wanted, "class"),
        "second": _seen(read, wanted, "second"),
        "color": _colors(read, wanted),
        "relation": _relations(judges, images, wanted),
    }
    asked = torch.tensor([[fact in facts for fact in FACTS] for facts in wanted])
    return Satisfaction(asked, torch.tensor([columns[fact] for fact in FACTS]).T)


def check_wanted(facts: Wanted) -> None:
    """Raise UserError for a fact or value that the toybox does not have, or one that needs another beside it."""
    for fact, value in facts.items():
        if fact not in FACTS:
            raise UserError(f'No fact is called "{fact}".{nearest(fact, FACTS)} There are {", ".join(FACTS)}.')
        if value not in FACTS[fact]:
            options = [str(option) for option in FACTS[fact]]
            raise UserError(f'No {fact} is "{value}".{nearest(str(value), options)} There are {", ".join(options)}.')
    for fact, needed in (("color", ("class",)), ("second", ("class",)), ("relation", ("class", "second"))):
        if fact in facts and not set(needed) <= facts.keys():
            raise UserError(f'The fact "{fact}" needs {" and ".join(needed)} beside it.')
    if "second" in facts and facts["class"] == facts["second"]:
        raise UserError(f'The second toy is of another class; for two of "{facts["class"]}" ask for the count 2.')


def _equal(wanted: Sequence[Wanted], fact: str, values: Sequence[object]) -> list[bool]:
    return [facts.get(fact) == value for facts, value in zip(wanted, values, strict=True)]


def _seen(read: Facts, wanted: Sequence[Wanted], fact: str) -> list[bool]:
    """Whether the toy wanted as `fact`, the "class" or the "second", is seen."""
    seen = {noun: read.shows(noun).tolist() for noun in CLASSES}
    return [fact in facts and seen[str(facts[fact])][row] for row, facts in enumerate(wanted)]


def _colors(read: Facts, wanted: Sequence[Wanted]) -> list[bool]:
    colors = {noun: read.color_of(noun) for noun in CLASSES}
    return ["color" in facts and colors[str(facts["class"])][row] == facts["color"] for row, facts in enumerate(wanted)]


def _relations(judges: Judges, images: Tensor, wanted: Sequence[Wanted]) -> list[bool]:
    """Whether the class stands to the second toy as it should."""
    found = []
    for row, facts in enumerate(wanted):
        if "relation" in facts:
            stands = judges.relation(images[row : row + 1], str(facts["class"]), str(facts["second"]))[0]
            either = ("left of", "right of") if facts["relation"] == "next to" else (facts["relation"],)
            found.append(stands in either)
        else:
            found.append(False)
    return found


# ---------------------------------------------------------------------------------------------------- segments


def subject_masks(judges: Judges, images: Tensor, class_noun: str) -> Tensor:
    """How probably each pixel of images [N, 3, H, W] shows a toy of the class, [N, H, W] in [0, 1] on the CPU.

    Raises:
        UserError: the toybox has no such class.
    """
    check_wanted({"class": class_noun})
    return judges.segment(images, class_noun).cpu()


def both_present(judges: Judges, images: Tensor, noun_a: str, noun_b: str) -> Tensor:
    """Whether each image [N, 3, H, W] shows both toys, which are of different classes, [N] bool.

    Raises:
        UserError: the toybox has no such class.
    """
    for noun in (noun_a, noun_b):
        check_wanted({"class": noun})
    assert noun_a != noun_b, "of one class: two_of"
    return judges.read(images).shows(noun_a, noun_b).cpu()


def two_of(judges: Judges, images: Tensor, class_noun: str) -> Tensor:
    """Whether each image [N, 3, H, W] shows two toys or more, all of this class, [N] bool: by the judges' count.

    Raises:
        UserError: the toybox has no such class.
    """
    check_wanted({"class": class_noun})
    read = judges.read(images)
    alone = (read.classes > 0.5).sum(dim=1) == 1
    return (read.shows(class_noun) & alone).cpu() & (torch.tensor(read.count()) >= 2)


# --------------------------------------------------------------------------------------------------- the metric


def of_each_image(evidence: Evidence) -> Satisfaction:
    assert evidence.judges
    return satisfied_facts(evidence.judges, evidence.images.tensor, evidence.wanted)


def _compute(evidence: Evidence) -> dict[str, Figure]:
    found, prompt_of = evidence.once(of_each_image), evidence.prompt_of
    figures = {"facts": mean_over_prompts(found.satisfied, prompt_of)}
    for fact, asked, holds in zip(FACTS, found.asked.T, found.holds.T, strict=True):
        if asked.any():
            figures[f"facts_{fact}"] = mean_over_prompts(holds[asked], prompt_of[asked.numpy()])
    return figures


def fact_measure(kind: str, words: str) -> Measure:
    """The measure of one kind of fact, named by `words`."""
    sentence = f"Share of prompts whose {words} judges see in the image."
    return Measure(f"facts_{kind}", words, sentence, "higher", metric.FACTS, is_share=True)


METRIC = Metric(
    (
        Measure(
            "facts",
            "facts",
            "Share of what the prompt asks for that judges see in the image.",
            "higher",
            metric.FIDELITY,
            is_share=True,
            place=40,
        ),
        fact_measure("class", "class"),
        fact_measure("background", "background"),
        fact_measure("style", "style"),
        fact_measure("time", "time of day"),
        fact_measure("second", "second toy"),
    ),
    frozenset({Need.JUDGES}),
    _compute,
)
