"""An audit -> answers in words, question by question."""

from collections.abc import Sequence
from typing import NamedTuple

from infusion.auditing.limits import PARTS
from infusion.auditing.result import AuditResult
from infusion.intervals import Figure, share
from infusion.metrics.catalogue import ROUNDING
from infusion.metrics.prompts import mean_over_prompts
from infusion.pages.numbers import format_figure, format_number, format_share

_AS_MUCH = 0.9  # of the base's own: what is above that is as good as followed
_LITTLE = 0.1  # of the way from the base's images of a class to the subject
_RARE = 0.01  # a chance below which it is not taken for chance; three parts together are below 0.03
_TIMES_ROUNDING = 10  # the base model's own divergence, in another batch, is one draw of rounding
NEEDS_IMAGES = "This takes real images of the subject: give the folder it was trained on, --images FOLDER."
TOO_ALIKE = (
    "The real images and the base model’s are too alike to make a scale of: give other images of the subject, or "
    "another --encoder."
)


class Answer(NamedTuple):
    """A question, its answer in a word and in a sentence, and the measures that it is read from.

    axis: its name among `AXES`, where the answer has one number.
    """

    axis: str | None
    question: str
    word: str
    sentence: str
    measures: Sequence[str]


def answers(found: AuditResult) -> list[Answer]:
    """What the measures say, question by question."""
    facts = [name for name in found.own.measures if name.startswith("facts")]
    return [
        Answer("learnt", "Was it learnt?", *_learnt(found), ("identity", "image_alignment")),
        Answer(None, "Are prompts followed?", *_followed(found), (*facts, "text_alignment")),
        Answer("class", "Did it leak into its class?", *_leaked(found), _OF_CLASS),
        Answer("world", "Did the rest of the world move?", *_moved(found), ("lfd_s1", "lfd_s4")),
        Answer("confined", "Is it confined to the subject?", *_confined(found), (*PARTS, "subject_found")),
        Answer("copied", "Were training images copied?", *_copied(found), ("recalled", "copied", "collapse")),
    ]


_OF_CLASS = ("class_leak", "class_diversity", "lfd_s2", "lfd_s3")


def _learnt(found: AuditResult) -> tuple[str, str]:
    identity = found.figure("identity")
    if identity is None:
        return "Not measured", TOO_ALIKE if found.training else NEEDS_IMAGES
    where = (
        f"Its images stand at {format_figure(identity)} between the base model’s of a plain {found.class_noun}, 0, "
        "and real images of the subject, 1"
    )
    if identity.low > 1:
        return "Overfitted", f"{where}: above 1 is copying, not quality."
    if identity.high < _LITTLE:
        return "No", f"{where}: they are hardly more like it than the base model’s, or less."
    if identity.low > 0:
        return "Yes", f"{where}."
    return "Inconclusive", f"{where}; the interval holds 0, so they may be no more like it than the base model’s."


def _followed(found: AuditResult) -> tuple[str, str]:
    facts = found.figure("facts")
    figure, base = (found.figure(name := "facts" if facts else "text_alignment"), found.beside(name))
    if figure is None or base is None:
        return "Not measured", "The images could not be compared with their prompts."
    told = (
        f"Judges see {format_share(figure)} of what the prompts ask for; in the base model’s images of a plain "
        f"{found.class_noun}, {base:.0%}."
        if facts
        else f"Images and prompts have a cosine of {format_figure(figure)}; the base model’s images of a plain "
        f"{found.class_noun}, {format_number(base)}."
    )
    if figure.low >= _AS_MUCH * base:
        return "Yes", told
    if mean_over_prompts(found.own.followed - found.untouched.followed, found.plan.prompt_of).high < 0:
        return "Less than before", told
    return "Inconclusive", f"{told} Whether that is less than before is inconclusive: more prompts would narrow it."


def _leaked(found: AuditResult) -> tuple[str, str]:
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
        signs.append(f"images of {plain} differ among themselves {format_figure(diversity)} times as much as before")
    if signs:
        return "Yes", _sentence(f"{' and '.join(signs)}; {moved}")
    if leak is None:
        return "It moved", _sentence(f"{moved}, what that did is open")
    told = f"{plain} stands at {format_figure(leak)} between what it was, 0, and the subject, 1"
    return ("No sign" if leak.high < _LITTLE else "Inconclusive"), _sentence(f"{moved}; {told}")


def _moved(found: AuditResult) -> tuple[str, str]:
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


def _is_unmoved(found: AuditResult, name: str) -> bool:
    """Whether a divergence is what rounding makes, here or in the base model's own row."""
    figure, own = found.own.measures[name], found.untouched.measures.get(name)
    return figure.value <= max(ROUNDING, _TIMES_ROUNDING * (own.value if own else 0.0))


def _confined(found: AuditResult) -> tuple[str, str]:
    seen = [name for name in PARTS if found.figure(name) and name in found.own.chances]
    if not seen:
        return "Not measured", "There are too few images to tell background, layout and style from the base model’s."
    beyond = [name for name in seen if found.own.chances[name] < min(_RARE, found.untouched.chances.get(name, 1))]
    words = _listed([PARTS[name] for name in beyond or seen])
    differ = "differs" if len(beyond or seen) == 1 else "differ"
    if beyond:
        return "Partly", _sentence(
            f"{words} {differ} from the base model’s: chance makes such a difference less than once in 100 times"
        )
    return "As far as can be seen", (
        f"As far as these images show, {words} {differ} no more from the base model’s than other seeds make them."
    )


def _copied(found: AuditResult) -> tuple[str, str]:
    copied = found.figure("copied")
    if copied is None:
        return "Not measured", NEEDS_IMAGES
    nearer = "nearer to a training image than the real images are to each other"
    again = found.figure("recalled")
    plain = ""
    if again is not None and found.recalled:
        plain = f"From its words alone, {format_share(again)} of the images are a training image over again. "
    if copied.value == 0:
        none = share([False] * len(found.own.drawn.images))
        told = f"None of the {none.num} images is {nearer}; that cannot rule out that up to {none.high:.0%} of all are."
    else:
        told = f"{format_share(copied)} of the images are {nearer}."
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


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _relative(figure: Figure | None) -> str:
    """ "2.03% of", "15.3 times": a mean square over another."""
    if figure is None:
        return "an unknown share of"
    return f"{format_number(100 * figure.value)}% of" if figure.value < 1 else f"{format_number(figure.value)} times"
