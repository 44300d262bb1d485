"""An audit -> its page.

The page is a single HTML file like that of a training: no script, nothing from the network.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from infusion.auditing.answers import answers
from infusion.auditing.result import AuditResult
from infusion.base.prompts import class_prompt
from infusion.evaluation.drawing import as_image
from infusion.intervals import Figure
from infusion.metrics.catalogue import NOTES, ROUNDING, arrow, measure_of
from infusion.metrics.metric import AGNOSTIC, SPECIFIC, Measure
from infusion.pages.html import render, style, write
from infusion.pages.numbers import format_count, format_interval, format_number, format_seconds
from infusion.versions import versions

NUM_CASES = 6
_MOST_COPIES = 48
_OF_OTHER_TOOLS = ("made by", "rank", "changes", "step")
_LARGEST_PX = 256
GIVE_IMAGES = (
    "None were given. --images FOLDER, the folder it was trained on, adds whether it was learnt (identity), whether "
    "its class took it over (class leak), and whether images were copied (copied, collapse)."
)
NOTES_OF_ONE = (
    "Without other real images of the subject, the training images among themselves are the 1 of identity and the "
    "bar for copies; images taken in one place make that bar high.",
    "Intervals are over prompts (for the plain class noun over images), and every image begins with a noise of its "
    "own: they say what other prompts and seeds would give, not other subjects, trainings or base models. What other "
    "seeds make of a distance is one draw of them; whether a distance is more than that a permutation test decides.",
)


class Entry(NamedTuple):
    """One measure as it is shown. bar: low, value, high and what it is held against, in percent of its width."""

    label: str
    sentence: str
    value: str
    interval: str
    beside: str
    bar: tuple[float, float, float, float | None] | None


class Case(NamedTuple):
    """One prompt and seed, by the base model with the class noun and by the customized one."""

    prompt: str
    seed: int
    score: float
    base: Image.Image
    own: Image.Image


class Likeness(NamedTuple):
    """An image, and the training image that it is most like. is_copy: more so than other real images ever are."""

    prompt: str
    seed: int
    likeness: float
    is_copy: bool
    training: Image.Image
    own: Image.Image


def write_audit(found: AuditResult, path: str | Path) -> None:
    """One HTML file at `path`, whole or not at all. UserError when it cannot be written."""
    write(render_audit(found), path)


def render_audit(found: AuditResult) -> str:
    """HTML; all text is escaped."""
    told = answers(found)
    named = {name for answer in told for name in answer.measures}
    order = found.own.score.nan_to_num(0).argsort(stable=True).tolist()
    few = min(NUM_CASES, len(order) // 2)
    every = range(0, len(order), found.plan.drawing.num_seeds)
    nearest = _nearest(found)
    plain = _plain(found)
    return render(
        "audit.html.j2",
        style=style("audit.css"),
        found=found,
        statement=_statement(found),
        answers=[(answer, _entries(found, answer.measures)) for answer in told],
        rest=_entries(found, [name for name in found.own.measures if name not in named]),
        cases={
            "Worst": [_case(found, n) for n in order[:few]],
            "Best": [_case(found, n) for n in order[::-1][:few]],
            "Every prompt": [_case(found, n) for n in every],
        },
        nearest=nearest,
        plain=plain,
        plain_told=_told_of_plain(found),
        nearest_told=_told_of_nearest(found),
        score=_score(found),
        facts=_facts(found),
        settings=_settings(found),
        notes=(NOTES[AGNOSTIC], NOTES[SPECIFIC], *NOTES_OF_ONE),
        missing=None if found.training else GIVE_IMAGES,
    )


def _statement(found: AuditResult) -> str:
    num_prompts, images = len(found.plan.prompts), format_count(found.plan.drawing.num_seeds, "image")
    return (
        f"One particular {found.class_noun}, taught to the base model “{found.base}” by the method "
        f"{found.about['method']}. Measured on {num_prompts} prompts × {images}, beside the base model’s of a "
        f"plain {found.class_noun} from the same seeds."
    )


def _entries(found: AuditResult, names: Sequence[str]) -> list[Entry]:
    measured = [(name, figure) for name in names if (figure := found.figure(name))]
    return [_entry(measure_of(name), figure, found.beside(name), _against(found, name)) for name, figure in measured]


def _against(found: AuditResult, name: str) -> str:
    """What a measure is held against, in words."""
    beside, chance = found.beside(name), found.own.chances.get(name)
    against = []
    if beside is not None:
        against.append(f"{'other seeds' if name in found.nulls else 'base model'} {format_number(beside)}")
    if name == "identity":
        against.append("real images 1")
    if chance is not None:
        against.append(f"p\u00a0=\u00a0{chance:.4f}")
    return ", ".join(against)


def _entry(measure: Measure, figure: Figure, beside: float | None, against: str) -> Entry:
    bar = None
    ends = [0.0, figure.low, figure.high, figure.value, beside if beside is not None else 0.0]
    if math.isfinite(figure.low) and max(ends) - min(ends) > ROUNDING:
        low, span = min(ends), max(ends) - min(ends)
        places = [round(100 * (value - low) / span, 2) for value in (figure.low, figure.value, figure.high)]
        at = round(100 * (beside - low) / span, 2) if beside is not None else None
        bar = (places[0], places[1], places[2], at)
    return Entry(
        measure.label + arrow(measure),
        measure.sentence,
        format_number(figure.value),
        format_interval(figure),
        against,
        bar,
    )


def _case(found: AuditResult, n: int) -> Case:
    num_seeds = found.plan.drawing.num_seeds
    prompt = found.plan.prompts[n // num_seeds].text.format(found.placeholder)
    base, own = (shown(some.drawn.images[n]) for some in (found.untouched, found.own))
    return Case(prompt, n, found.own.score[n].item(), base, own)


def _nearest(found: AuditResult) -> list[Likeness]:
    """The images most like a training image, the likest first."""
    near = found.own.nearest
    if near is None:
        return []
    num_seeds = found.plan.drawing.num_seeds
    told = []
    num_copies = int((near.cosine > found.own.never_nearer).sum())
    num = min(max(NUM_CASES, num_copies), _MOST_COPIES)
    for n in near.cosine.argsort(descending=True, stable=True)[:num].tolist():
        likeness, training = near.cosine[n].item(), found.training[int(near.reference[n])].copy()
        training.thumbnail((_LARGEST_PX, _LARGEST_PX))
        prompt = found.plan.prompts[n // num_seeds].text.format(found.placeholder)
        copy = likeness > found.own.never_nearer
        told.append(Likeness(prompt, n, likeness, copy, training, shown(found.own.drawn.images[n])))
    return told


def _plain(found: AuditResult) -> list[Likeness]:
    """The images of the words alone nearest to a training image, pixel by pixel."""
    if found.recalled is None:
        return []
    images, near = found.recalled
    num = min(max(NUM_CASES, int(near.is_copy.sum())), _MOST_COPIES)
    told = []
    for n in near.distance.argsort(stable=True)[:num].tolist():
        training = found.training[int(near.reference[n])].copy()
        training.thumbnail((_LARGEST_PX, _LARGEST_PX))
        prompt, copy = class_prompt(found.placeholder), bool(near.is_copy[n])
        told.append(Likeness(prompt, n, near.distance[n].item(), copy, training, shown(images[n])))
    return told


def _told_of_plain(found: AuditResult) -> str:
    if found.recalled is None:
        return ""
    near = found.recalled.found
    return (
        f"Drawn without guidance, {int(near.is_copy.sum())} of {len(near.distance)} are nearer than {near.bar:.3f} to "
        "a training image, half of what two training images differ by: a root mean square over the pixels."
    )


def _told_of_nearest(found: AuditResult) -> str:
    if found.own.nearest is None:
        return ""
    num = int((found.own.nearest.cosine > found.own.never_nearer).sum())
    bar = f"{found.own.never_nearer:.3f}, the most that the real images are like each other"
    return f"{num} of {len(found.own.nearest.cosine)} images are beyond {bar}: those are suspected of being copies."


def shown(drawn: Tensor) -> Image.Image:
    """An image [3, H, W], as large as a page has room for."""
    image = as_image(drawn)
    image.thumbnail((_LARGEST_PX, _LARGEST_PX))
    return image


def _score(found: AuditResult) -> str:
    followed = "the facts that judges see" if found.evaluators["judges"] else "text alignment"
    return f"the mean of identity and {followed}" if found.figure("identity") else followed


def _facts(found: AuditResult) -> dict[str, str]:
    said = {
        "file": f"{found.file_bytes:,} bytes",
        "parameters": f"{found.num_parameters:,}",
        "method": found.about["method"],
        "its paper": found.about["paper"],
        **{name: found.about["settings"].get(name) for name in _OF_OTHER_TOOLS},
        "base model": found.base,
        "measured in": format_seconds(found.seconds),
    }
    return {name: str(value) for name, value in said.items() if value is not None}


def _settings(found: AuditResult) -> dict[str, str]:
    """Everything that the figures depend on, name by name."""
    told = {
        "adapter file": found.file_name,
        "strength": found.about["strength"],
        "base fingerprint": found.about["base"]["fingerprint"],
        **{f"method: {name}": value for name, value in found.about["settings"].items()},
        **{f"training: {name}": value for name, value in found.about["training"].items()},
        **{f"drawing: {name}": value for name, value in asdict(found.plan.drawing).items()},
        **{f"evaluator: {name}": value or "none" for name, value in found.evaluators.items()},
        "unrelated prompts (S1)": "; ".join(found.plan.unrelated),
        "sibling prompts (S2)": "; ".join(found.plan.siblings),
        **{f"version: {name}": value for name, value in versions(with_infusion=True).items()},
    }
    return {name: str(value) for name, value in told.items()}
