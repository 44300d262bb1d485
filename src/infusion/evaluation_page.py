"""One customized model's measures -> answers in words, one page, and one JSON file.

The page is a single HTML file like that of `infusion.report`: no script, nothing from the network.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image
from torch import Tensor

import infusion
from infusion.evaluation import Evaluation, Plan, as_image
from infusion.files import whole_file
from infusion.intervals import Figure, as_share, share
from infusion.measures import AGNOSTIC, NOTES, ROUNDING, SPECIFIC, Measure, arrow, measure_of
from infusion.report import data_uri, format_count, format_seconds, pieces

_NUM_CASES = 6
_LARGEST_PX = 256
_AS_MUCH = 0.9  # of the base's own: what is above that is as good as followed
NEEDS_PICTURES = "This takes real pictures of the subject: give the folder it was trained on, --pictures FOLDER."
TOO_ALIKE = (
    "The real pictures and the base model’s are too alike to make a scale of: give other pictures of the subject, or "
    "another --encoder."
)
GIVE_PICTURES = (
    "None were given. --pictures FOLDER, the folder it was trained on, adds whether it was learnt (identity), whether "
    "its class took it over (class leak), and whether pictures were copied (copied, collapse)."
)
_NOTES_OF_ONE = (
    "Without other real pictures of the subject, the training pictures among themselves are the 1 of identity and the "
    "bar for copies; pictures taken in one place make that bar high.",
    "Intervals are over prompts (for the plain class noun over pictures): they say what other prompts would give, not "
    "other seeds, subjects, trainings or base models. What other seeds make of a distance is one draw of them.",
)


@dataclass(frozen=True)
class Evaluated:
    """Everything that is told of one adapter.

    about: its file's description of itself. own, untouched: measures of it, and of the base model with the class noun
    in its place, with the same prompts and seeds. nulls: what finite samples alone make of a distance. training: its
    real pictures, where they were given. witnesses: who looked, by name.
    """

    about: Mapping[str, Any]
    file_name: str
    file_bytes: int
    num_parameters: int
    base: str
    plan: Plan
    own: Evaluation
    untouched: Evaluation
    nulls: Mapping[str, float]
    training: Sequence[Image.Image]
    witnesses: Mapping[str, str | None]
    seconds: float

    @property
    def placeholder(self) -> str:
        return f"<{self.about['concept_name']}>"

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


# ------------------------------------------------------------------------------------------------ answers in words


class Answer(NamedTuple):
    """A question, its answer in a word and in a sentence, and the measures that it is read from."""

    question: str
    word: str
    sentence: str
    measures: Sequence[str]


def answers(found: Evaluated) -> list[Answer]:
    """What the measures say, question by question."""
    facts = [name for name in found.own.measures if name.startswith("facts")]
    return [
        Answer("Was it learnt?", *_learnt(found), ("identity", "image_alignment")),
        Answer("Are prompts followed?", *_followed(found), (*facts, "text_alignment")),
        Answer("Did it leak into its class?", *_leaked(found), ("class_leak", "class_diversity", "lfd_s3")),
        Answer("Did the rest of the world move?", *_moved(found), ("lfd_s1", "lfd_s2")),
        Answer("Is it confined to the subject?", *_confined(found), _CONFINED),
        Answer("Were training pictures copied?", *_copied(found), ("copied", "collapse")),
    ]


_PARTS = {"w2_background": "background", "w2_layout": "layout", "w2_style": "style"}
_CONFINED = ("lfd_s4", *_PARTS, "subject_found")


def _learnt(found: Evaluated) -> tuple[str, str]:
    identity = found.figure("identity")
    if identity is None:
        return "Not measured", TOO_ALIKE if found.training else NEEDS_PICTURES
    where = (
        f"Its pictures stand at {_told(identity)} between the base model’s of a plain {found.class_noun}, 0, and real "
        "pictures of the subject, 1"
    )
    if identity.low > 1:
        return "More than learnt", f"{where}: above 1 is copying, not quality."
    if identity.low > 0:
        return "Yes", f"{where}."
    if identity.high < 0:
        return "No", f"{where}: they are less like it than the base model’s."
    return "Cannot tell", f"{where}; the interval holds 0, so they may be no more like it than the base model’s."


def _followed(found: Evaluated) -> tuple[str, str]:
    facts = found.figure("facts")
    figure, base = (found.figure(name := "facts" if facts else "text_alignment"), found.beside(name))
    if figure is None or base is None:
        return "Not measured", "The pictures could not be compared with their prompts."
    told = (
        f"Judges see {_shares(figure)} of what the prompts ask for; in the base model’s pictures of a plain "
        f"{found.class_noun}, {base:.0%}."
        if facts
        else f"Pictures and prompts have a cosine of {_told(figure)}; the base model’s pictures of a plain "
        f"{found.class_noun}, {_number(base)}."
    )
    if figure.high < base:
        return "Less than before", told
    if figure.low >= _AS_MUCH * base:
        return "Yes", told
    return "Cannot tell", f"{told} The interval holds that and also much less: more prompts would narrow it."


def _leaked(found: Evaluated) -> tuple[str, str]:
    divergence, relative = found.figure("lfd_s3"), found.figure("lfd_s3_relative")
    leak, diversity = found.figure("class_leak"), found.figure("class_diversity")
    plain = f"a plain {found.class_noun}"
    if divergence is not None and divergence.value <= ROUNDING:
        return "No", f"Prompts with {plain} give the base model’s predictions: {_unmoved(S3=divergence)}."
    moved = f"predictions for {plain} moved by {_relative(relative)} what the prompt itself changes in them (S3)"
    signs = []
    if leak is not None and leak.low > 0:
        signs.append(f"{plain} has come nearer to the subject, by {_told(leak)} on the scale of identity")
    if diversity is not None and diversity.high < 1:
        signs.append(f"pictures of {plain} differ among themselves {_told(diversity)} times as much as before")
    if signs:
        return "Yes", _sentence(f"{' and '.join(signs)}; {moved}")
    unseen = "and its pictures show no more of the subject than before" if leak is not None else "what that did is open"
    return ("No sign" if leak is not None else "It moved"), _sentence(f"{moved}, {unseen}")


def _moved(found: Evaluated) -> tuple[str, str]:
    unrelated, siblings = found.figure("lfd_s1"), found.figure("lfd_s2")
    if unrelated is None or siblings is None:
        return "Not measured", "The divergences could not be taken."
    if max(unrelated.value, siblings.value) <= ROUNDING:
        return "No", (
            "Prompts that name neither the concept nor its class give the base model’s predictions: "
            f"{_unmoved(S1=unrelated, S2=siblings)}."
        )
    first, second = (_relative(found.figure(f"lfd_{name}_relative")) for name in ("s1", "s2"))
    return "Yes", (
        f"Predictions for unrelated prompts moved by {first} what the prompt itself changes in them, and for sibling "
        f"classes by {second} that."
    )


def _confined(found: Evaluated) -> tuple[str, str]:
    told = [(words, found.figure(name), found.beside(name)) for name, words in _PARTS.items()]
    seen = [(words, figure, null) for words, figure, null in told if figure and null is not None]
    if not seen:
        return "Not measured", "Background, layout and style could not be compared with the base model’s."
    relative = _relative(found.figure("lfd_s4_relative"))
    outside = f"outside the subject predictions moved by {relative} what the prompt itself changes"
    beyond = [words for words, figure, null in seen if figure.low > null]
    words = _listed(beyond or [words for words, _, _ in seen])
    differ = "differs" if len(beyond or seen) == 1 else "differ"
    if beyond:
        return "Not wholly", _sentence(
            f"{words} {differ} from the base model’s by more than one draw of other seeds does; {outside}"
        )
    return "As far as can be seen", (
        f"As far as these pictures show, {words} {differ} no more from the base model’s than one draw of other seeds "
        f"does; {outside}."
    )


def _copied(found: Evaluated) -> tuple[str, str]:
    copied = found.figure("copied")
    if copied is None:
        return "Not measured", NEEDS_PICTURES
    nearer = "nearer to a training picture than the real pictures are to each other"
    if copied.value == 0:
        none = share([False] * len(found.own.drawn.images))
        return "None seen", (
            f"None of the {none.num} pictures is {nearer}; that cannot rule out that up to {none.high:.0%} of all are."
        )
    return ("Yes" if copied.low > 0 else "A few may be"), f"{_shares(copied)} of the pictures are {nearer}."


def _listed(words: Sequence[str]) -> str:
    """ "background, layout and style"."""
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def _unmoved(**probes: Figure) -> str:
    """ "S1 is 0, S2 is 0 but for rounding"."""
    return ", ".join(f"{name} is 0{' but for rounding' if figure.value else ''}" for name, figure in probes.items())


def _shares(figure: Figure) -> str:
    """ "62% (51% to 70%)"."""
    has_none = math.isnan(figure.low) or figure.low == figure.high
    interval = "" if has_none else f" ({figure.low:.0%} to {figure.high:.0%})"
    return f"{figure.value:.0%}{interval}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _told(figure: Figure) -> str:
    """ "0.62 (0.51 to 0.70)"."""
    if not math.isfinite(figure.low) or figure.low == figure.high:
        return _number(figure.value)
    return f"{_number(figure.value)} ({_number(figure.low)} to {_number(figure.high)})"


def _number(value: float) -> str:
    """Three digits; what only rounding made is told as such, and 0 is exactly zero."""
    if value == 0:
        return "0"
    if abs(value) <= ROUNDING:
        return "<1e−9"
    size = abs(value)
    decimals = max(0, 2 - math.floor(math.log10(size)))
    text = f"{size:.{decimals}f}" if size >= 1e-4 else f"{size:.3g}".replace("e-0", "e−").replace("e-", "e−")
    return ("−" if value < 0 else "") + text


def _relative(figure: Figure | None) -> str:
    """ "2.03% of", "15.3 times": a mean square over another."""
    if figure is None:
        return "an unknown share of"
    return f"{_number(100 * figure.value)}% of" if figure.value < 1 else f"{_number(figure.value)} times"


# ------------------------------------------------------------------------------------------------------- the page


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


def write_evaluation(found: Evaluated, path: str | Path) -> None:
    """One HTML file at `path`, whole or not at all. UserError when it cannot be written."""
    content = render_evaluation(found).encode("utf-8", errors="replace")
    with whole_file(Path(path)) as temporary_path:
        temporary_path.write_bytes(content)


def render_evaluation(found: Evaluated) -> str:
    """HTML; all text is escaped."""
    told = answers(found)
    shown = {name for answer in told for name in answer.measures}
    order = found.own.score.nan_to_num(0).argsort(stable=True).tolist()
    few = min(_NUM_CASES, len(order) // 2)
    every = range(0, len(order), found.plan.drawing.num_seeds)
    return _template().render(
        found=found,
        statement=_statement(found),
        answers=[(answer, _entries(found, answer.measures)) for answer in told],
        rest=_entries(found, [name for name in found.own.measures if name not in shown]),
        cases={
            "Worst": [_case(found, n) for n in order[:few]],
            "Best": [_case(found, n) for n in order[::-1][:few]],
            "Every prompt, first seed": [_case(found, n) for n in every],
        },
        score=_score(found),
        facts=_facts(found),
        settings=_settings(found),
        notes=(NOTES[AGNOSTIC], NOTES[SPECIFIC], *_NOTES_OF_ONE),
        missing=None if found.training else GIVE_PICTURES,
    )


def _statement(found: Evaluated) -> str:
    num_prompts, seeds = len(found.plan.prompts), format_count(found.plan.drawing.num_seeds, "seed")
    return (
        f"One particular {found.class_noun}, taught to the base model “{found.base}” by the method "
        f"{found.about['method']}. Measured on {num_prompts} prompts × {seeds}, beside the base model’s pictures of a "
        f"plain {found.class_noun} from the same seeds."
    )


def _entries(found: Evaluated, names: Sequence[str]) -> list[Entry]:
    measured = [(name, figure) for name in names if (figure := found.figure(name))]
    return [_entry(measure_of(name), figure, found.beside(name), name in found.nulls) for name, figure in measured]


def _entry(measure: Measure, figure: Figure, beside: float | None, is_null: bool) -> Entry:
    against = f"{'other seeds' if is_null else 'base model'} {_number(beside)}" if beside is not None else ""
    against += ", real pictures 1" if measure.name == "identity" else ""
    known = math.isfinite(figure.low)
    interval = "" if not known else "no spread" if figure.low == figure.high else _told(figure).partition(" ")[2][1:-1]
    bar = None
    ends = [0.0, figure.low, figure.high, figure.value, beside if beside is not None else 0.0]
    if known and max(ends) - min(ends) > ROUNDING:
        low, span = min(ends), max(ends) - min(ends)
        places = [round(100 * (value - low) / span, 2) for value in (figure.low, figure.value, figure.high)]
        at = round(100 * (beside - low) / span, 2) if beside is not None else None
        bar = (places[0], places[1], places[2], at)
    return Entry(measure.label + arrow(measure), measure.sentence, _number(figure.value), interval, against, bar)


def _case(found: Evaluated, n: int) -> Case:
    num_seeds = found.plan.drawing.num_seeds
    prompt = found.plan.prompts[n // num_seeds].text.format(found.placeholder)
    base, own = (_shown(some.drawn.images[n]) for some in (found.untouched, found.own))
    return Case(prompt, n % num_seeds, found.own.score[n].item(), base, own)


def _shown(picture: Tensor) -> Image.Image:
    image = as_image(picture)
    image.thumbnail((_LARGEST_PX, _LARGEST_PX))
    return image


def _score(found: Evaluated) -> str:
    followed = "the facts that judges see" if found.witnesses["judges"] else "text alignment"
    return f"the mean of identity and {followed}" if found.figure("identity") else followed


def _facts(found: Evaluated) -> dict[str, str]:
    return {
        "file": f"{found.file_bytes:,} bytes",
        "parameters": f"{found.num_parameters:,}",
        "method": str(found.about["method"]),
        "its paper": str(found.about["paper"]),
        "base model": found.base,
        "measured in": format_seconds(found.seconds),
    }


def _settings(found: Evaluated) -> dict[str, str]:
    """Everything that the figures depend on, name by name."""
    told = {
        "adapter file": found.file_name,
        "base fingerprint": found.about["base"]["fingerprint"],
        **{f"method: {name}": value for name, value in found.about["settings"].items()},
        **{f"training: {name}": value for name, value in found.about["training"].items()},
        **{f"drawing: {name}": value for name, value in asdict(found.plan.drawing).items()},
        **{f"witness: {name}": value or "none" for name, value in found.witnesses.items()},
        "unrelated prompts (S1)": "; ".join(found.plan.unrelated),
        "sibling prompts (S2)": "; ".join(found.plan.siblings),
        **{f"version: {name}": value for name, value in _versions().items()},
    }
    return {name: str(value) for name, value in told.items()}


def _versions() -> dict[str, str]:
    known = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"infusion": infusion.__version__} | known


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"data_uri": data_uri, "pieces": pieces}
    return environment.from_string(files("infusion").joinpath("evaluation.html.j2").read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------------------- the JSON


def to_json(found: Evaluated) -> str:
    """Everything measured, with intervals, and all that it depends on, for programs."""
    content = {
        "definition": "Every measure is this project's definition of it.",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapter": {
            "file": found.file_name,
            "bytes": found.file_bytes,
            "num_parameters": found.num_parameters,
            **{name: found.about[name] for name in ("concept_name", "class_noun", "method", "paper", "settings")},
            "training": found.about["training"],
        },
        "base": {"id": found.base, "trained_on": found.about["base"]},
        "num_pictures": len(found.training),
        "plan": asdict(found.plan),
        "seeds": list(range(found.plan.drawing.num_seeds)),
        "witnesses": dict(found.witnesses),
        "versions": _versions(),
        "answers": [{"question": one.question, "answer": one.word, "sentence": one.sentence} for one in answers(found)],
        "measures": {name: _measured(found, name, figure) for name, figure in found.own.measures.items()},
        "seconds": round(found.seconds, 1),
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _measured(found: Evaluated, name: str, figure: Figure) -> dict[str, Any]:
    base = found.untouched.measures.get(name)
    return {
        "value": _finite(figure.value),
        "low": _finite(figure.low),
        "high": _finite(figure.high),
        "num": figure.num,
        "base": _finite(base.value if base else None),
        "null": _finite(found.nulls.get(name)),
        "better": measure_of(name).better,
        "sentence": measure_of(name).sentence,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
