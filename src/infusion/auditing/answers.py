"""One customized model's measures -> answers in words, axes with a number each, and a JSON file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

import infusion
from infusion.errors import UserError, nearest
from infusion.evaluation.evaluate import Evaluation
from infusion.evaluation.plans import Plan
from infusion.intervals import Figure, as_share, share
from infusion.metrics import Recalled, mean_over_prompts
from infusion.metrics.catalogue import BY_NAME, ROUNDING, measure_of
from infusion.training.stopping import Check

_AS_MUCH = 0.9  # of the base's own: what is above that is as good as followed
_LITTLE = 0.1  # of the way from the base's pictures of a class to the subject
_RARE = 0.01  # a chance below which it is not taken for chance; three parts together are below 0.03
_TIMES_ROUNDING = 10  # the base model's own divergence, in another batch, is one draw of rounding
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
class Audited:
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


# ------------------------------------------------------------------------------------------------ answers in words


class Answer(NamedTuple):
    """A question, its answer in a word and in a sentence, and the measures that it is read from.

    axis: its name among `AXES`, where the answer has one number.
    """

    axis: str | None
    question: str
    word: str
    sentence: str
    measures: Sequence[str]


def answers(found: Audited) -> list[Answer]:
    """What the measures say, question by question."""
    facts = [name for name in found.own.measures if name.startswith("facts")]
    return [
        Answer("learnt", "Was it learnt?", *_learnt(found), ("identity", "image_alignment")),
        Answer(None, "Are prompts followed?", *_followed(found), (*facts, "text_alignment")),
        Answer("class", "Did it leak into its class?", *_leaked(found), _OF_CLASS),
        Answer("world", "Did the rest of the world move?", *_moved(found), ("lfd_s1", "lfd_s4")),
        Answer("confined", "Is it confined to the subject?", *_confined(found), (*_PARTS, "subject_found")),
        Answer("copied", "Were training pictures copied?", *_copied(found), ("recalled", "copied", "collapse")),
    ]


_PARTS = {"w2_background": "background", "w2_layout": "layout", "w2_style": "style"}
_OF_CLASS = ("class_leak", "class_diversity", "lfd_s2", "lfd_s3")


def _learnt(found: Audited) -> tuple[str, str]:
    identity = found.figure("identity")
    if identity is None:
        return "Not measured", TOO_ALIKE if found.training else NEEDS_PICTURES
    where = (
        f"Its pictures stand at {format_figure(identity)} between the base model’s of a plain {found.class_noun}, 0, "
        "and real pictures of the subject, 1"
    )
    if identity.low > 1:
        return "More than learnt", f"{where}: above 1 is copying, not quality."
    if identity.high < _LITTLE:
        return "No", f"{where}: they are hardly more like it than the base model’s, or less."
    if identity.low > 0:
        return "Yes", f"{where}."
    return "Cannot tell", f"{where}; the interval holds 0, so they may be no more like it than the base model’s."


def _followed(found: Audited) -> tuple[str, str]:
    facts = found.figure("facts")
    figure, base = (found.figure(name := "facts" if facts else "text_alignment"), found.beside(name))
    if figure is None or base is None:
        return "Not measured", "The pictures could not be compared with their prompts."
    told = (
        f"Judges see {_shares(figure)} of what the prompts ask for; in the base model’s pictures of a plain "
        f"{found.class_noun}, {base:.0%}."
        if facts
        else f"Pictures and prompts have a cosine of {format_figure(figure)}; the base model’s pictures of a plain "
        f"{found.class_noun}, {format_number(base)}."
    )
    if figure.low >= _AS_MUCH * base:
        return "Yes", told
    if mean_over_prompts(found.own.followed - found.untouched.followed, found.plan.prompt_of).high < 0:
        return "Less than before", told
    return "Cannot tell", f"{told} Whether that is less than before cannot be told: more prompts would narrow it."


def _leaked(found: Audited) -> tuple[str, str]:
    siblings, noun = found.figure("lfd_s2"), found.figure("lfd_s3")
    leak, diversity = found.figure("class_leak"), found.figure("class_diversity")
    plain = f"a plain {found.class_noun}"
    if siblings is None or noun is None:
        return "Not measured", "The divergences could not be taken."
    if _is_unmoved(found, "lfd_s2") and _is_unmoved(found, "lfd_s3"):
        return "No", (
            f"Prompts with {plain} and with sibling classes give the base model’s predictions: "
            f"{_unmoved(S2=siblings, S3=noun)}."
        )
    second, third = (_relative(found.figure(f"lfd_{name}_relative")) for name in ("s2", "s3"))
    moved = (
        f"predictions for {plain} moved by {third} what the prompt itself changes in them (S3), and for sibling "
        f"classes by {second} that (S2)"
    )
    signs = []
    if leak is not None and leak.low > 0 and leak.high >= _LITTLE:
        signs.append(f"{plain} has come nearer to the subject, by {format_figure(leak)} on the scale of identity")
    if diversity is not None and diversity.high < 1:
        signs.append(f"pictures of {plain} differ among themselves {format_figure(diversity)} times as much as before")
    if signs:
        return "Yes", _sentence(f"{' and '.join(signs)}; {moved}")
    if leak is None:
        return "It moved", _sentence(f"{moved}, what that did is open")
    told = f"{plain} stands at {format_figure(leak)} between what it was, 0, and the subject, 1"
    return ("No sign" if leak.high < _LITTLE else "Cannot tell"), _sentence(f"{moved}; {told}")


def _moved(found: Audited) -> tuple[str, str]:
    unrelated, beside = found.figure("lfd_s1"), found.figure("lfd_s4")
    if unrelated is None or beside is None:
        return "Not measured", "The divergences could not be taken."
    first, fourth = (_relative(found.figure(f"lfd_{name}_relative")) for name in ("s1", "s4"))
    around = f"around the concept, outside the subject, predictions moved by {fourth} what the prompt itself changes"
    if not _is_unmoved(found, "lfd_s1"):
        return "Yes", (
            f"Predictions for unrelated prompts moved by {first} what the prompt itself changes in them (S1); {around} "
            "(S4)."
        )
    unmoved = f"Unrelated prompts give the base model’s predictions: {_unmoved(S1=unrelated)}"
    if not _is_unmoved(found, "lfd_s4"):
        return "Only around the concept", f"{unmoved}; {around} (S4)."
    return "No", f"{unmoved}; so does what is around the concept: {_unmoved(S4=beside)}."


def _is_unmoved(found: Audited, name: str) -> bool:
    """Whether a divergence is what rounding makes, here or in the base model's own row."""
    figure, own = found.own.measures[name], found.untouched.measures.get(name)
    return figure.value <= max(ROUNDING, _TIMES_ROUNDING * (own.value if own else 0.0))


def _confined(found: Audited) -> tuple[str, str]:
    seen = [name for name in _PARTS if found.figure(name) and name in found.own.chances]
    if not seen:
        return "Not measured", "There are too few pictures to tell background, layout and style from the base model’s."
    beyond = [name for name in seen if found.own.chances[name] < min(_RARE, found.untouched.chances.get(name, 1))]
    words = _listed([_PARTS[name] for name in beyond or seen])
    differ = "differs" if len(beyond or seen) == 1 else "differ"
    if beyond:
        return "Not wholly", _sentence(
            f"{words} {differ} from the base model’s: chance makes such a difference less than once in 100 times"
        )
    return "As far as can be seen", (
        f"As far as these pictures show, {words} {differ} no more from the base model’s than other seeds make them."
    )


def _copied(found: Audited) -> tuple[str, str]:
    copied = found.figure("copied")
    if copied is None:
        return "Not measured", NEEDS_PICTURES
    nearer = "nearer to a training picture than the real pictures are to each other"
    again = found.figure("recalled")
    plain = ""
    if again is not None and found.recalled:
        plain = f"From its words alone, {_shares(again)} of the pictures are a training picture over again. "
    if copied.value == 0:
        none = share([False] * len(found.own.drawn.images))
        told = (
            f"None of the {none.num} pictures is {nearer}; that cannot rule out that up to {none.high:.0%} of all are."
        )
    else:
        told = f"{_shares(copied)} of the pictures are {nearer}."
    if copied.low > 0 or (again is not None and again.low > 0):
        return "Yes", plain + told
    some = copied.value > 0 or (again is not None and again.value > 0)
    return ("A few may be" if some else "None seen"), plain + told


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


def _relative(figure: Figure | None) -> str:
    """ "2.03% of", "15.3 times": a mean square over another."""
    if figure is None:
        return "an unknown share of"
    return f"{format_number(100 * figure.value)}% of" if figure.value < 1 else f"{format_number(figure.value)} times"


@dataclass(frozen=True)
class Curve:
    """Checkpoints of one run, by step, and the one to keep."""

    checks: Sequence[Check]
    kept: Check


# ------------------------------------------------------------------------------------------------ a number per axis


class Axis(NamedTuple):
    """An answer's one number: the largest of some measures, of distances in units of what other seeds make of them."""

    name: str
    measures: Sequence[str]
    sentence: str


AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("learnt", ("identity",), "identity: 0 the base model’s pictures, 1 real pictures of the subject"),
        Axis(
            "class", ("lfd_s2_relative", "lfd_s3_relative"), "how far predictions for the class and its siblings moved"
        ),
        Axis("world", ("lfd_s1_relative", "lfd_s4_relative"), "how far predictions for everything else moved"),
        Axis("confined", tuple(_PARTS), "distance of background, layout or style, in units of other seeds’"),
        Axis("copied", ("copied", "recalled"), "share of pictures that are a training picture over again"),
    )
}
NEED_PICTURES = ("learnt", "copied", "recalled", "identity", "image_alignment", "collapse", "class_leak")


def axis_figure(found: Audited, name: str) -> Figure | None:
    """The number of an axis, or a measure by its own name; None where it was not taken."""
    names = AXES[name].measures if name in AXES else (name,)
    figures = [figure for one in names if (figure := found.figure(one))]
    if name == "confined":
        figures = [
            Figure(figure.value / null, figure.low / null, figure.high / null, figure.num)
            for one in names
            if (figure := found.figure(one)) and (null := found.nulls.get(one))
        ]
    return max(figures, key=lambda figure: figure.value, default=None)


class Limit(NamedTuple):
    """What an axis or a measure may not pass: upwards, or downwards."""

    name: str
    value: float
    upwards: bool

    def sentence(self, found: Audited) -> str | None:
        """What is wrong, if anything is; what was not measured passes no limit."""
        figure = axis_figure(found, self.name)
        if figure is None:
            return f"{self.name} was not measured, so it cannot keep its limit of {self.value:g}."
        if figure.value > self.value if self.upwards else figure.value < self.value:
            side = "above" if self.upwards else "below"
            return f"{self.name} is {format_figure(figure)}, {side} the limit of {self.value:g}."
        return None


def parse_limit(text: str, upwards: bool, has_pictures: bool) -> Limit:
    """ "world=0.05" -> a limit.

    Raises:
        UserError: no such axis or measure; no number; it takes pictures, and there are none.
    """
    name, _, value = text.partition("=")
    known = [*AXES, *BY_NAME]
    if name not in known:
        raise UserError(
            f'There is no axis "{name}".{nearest(name, known)} There are: {", ".join(AXES)}; and every measure by its '
            "name in the JSON file."
        )
    if name in NEED_PICTURES and not has_pictures:
        raise UserError(f"A limit of {name} takes real pictures of the subject: give --pictures FOLDER.")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f'"{text}" is no limit: write {name}=0.05.')
    return Limit(name, number, upwards)


# --------------------------------------------------------------------------------------------------------- the JSON


def to_json(audited: Sequence[Audited], curve: Curve | None = None) -> str:
    """Everything measured, with intervals, and all that it depends on, for programs."""
    steps = []
    if curve:
        steps = [asdict(one) | {"score": one.score, "kept": one is curve.kept} for one in curve.checks]
    content = {
        "definition": "Every measure is this project's definition of it.",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "audits": [_audit(found) for found in audited],
        "checkpoints": steps,
    }
    return json.dumps(_for_json(content), indent=2, allow_nan=False) + "\n"


def _audit(found: Audited) -> dict[str, Any]:
    return {
        "adapter": {
            "name": found.name,
            "file": found.file_name,
            "bytes": found.file_bytes,
            "num_parameters": found.num_parameters,
            **{
                name: found.about[name]
                for name in ("concept_name", "class_noun", "method", "paper", "strength", "settings")
            },
            "training": found.about["training"],
        },
        "base": {"id": found.base, "trained_on": found.about["base"]},
        "num_pictures": len(found.training),
        "plan": asdict(found.plan),
        "seeds": list(range(len(found.plan.prompt_of))),
        "witnesses": dict(found.evaluators),
        "verdict": {one.axis: _verdict(found, one) for one in answers(found) if one.axis},
        "answers": [{"question": one.question, "answer": one.word, "sentence": one.sentence} for one in answers(found)],
        "measures": {name: _measured(found, name, figure) for name, figure in found.own.measures.items()},
        "seconds": round(found.seconds, 1),
    }


def _for_json(content: Any) -> Any:
    """JSON has no NaN; six digits of every number."""
    if isinstance(content, dict):
        return {name: _for_json(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_for_json(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content


def _verdict(found: Audited, answer: Answer) -> dict[str, Any]:
    figure = axis_figure(found, str(answer.axis)) or Figure(math.nan, math.nan, math.nan, 0)
    return {
        "answer": answer.word,
        "sentence": answer.sentence,
        **{name: getattr(figure, name) for name in ("value", "low", "high")},
        "what": AXES[str(answer.axis)].sentence,
    }


def _measured(found: Audited, name: str, figure: Figure) -> dict[str, Any]:
    base = found.untouched.measures.get(name)
    return {
        "value": figure.value,
        "low": figure.low,
        "high": figure.high,
        "num": figure.num,
        "base": base.value if base else None,
        "null": found.nulls.get(name),
        "chance": found.own.chances.get(name),
        "better": measure_of(name).better,
        "sentence": measure_of(name).sentence,
    }


def versions() -> dict[str, str]:
    known = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"infusion": infusion.__version__} | known
