"""What an audit found of one customized model -> its part of a JSON file, and back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infusion.intervals import Figure


@dataclass(frozen=True)
class Measurement:
    """A measure: its figure, the base model's own, what other seeds make of it, how often chance alone does so."""

    figure: Figure
    base: float | None = None
    null: float | None = None
    chance: float | None = None
    better: str | None = None
    sentence: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            **self.figure._asdict(),
            "base": self.base,
            "null": self.null,
            "chance": self.chance,
            "better": self.better,
            "sentence": self.sentence,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Measurement":
        value, low, high = (_number(content[name]) for name in ("value", "low", "high"))
        base, null, chance = (content.get(name) for name in ("base", "null", "chance"))
        figure = Figure(value, low, high, int(content["num"]))
        return cls(figure, base, null, chance, content.get("better"), content.get("sentence", ""))


@dataclass(frozen=True)
class Verdict:
    """The answer of an axis, with its one number. what: what that number is."""

    answer: str
    sentence: str
    figure: Figure
    what: str

    def to_json(self) -> dict[str, Any]:
        figure = {name: getattr(self.figure, name) for name in ("value", "low", "high")}
        return {"answer": self.answer, "sentence": self.sentence, **figure, "what": self.what}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Verdict":
        value, low, high = (_number(content[name]) for name in ("value", "low", "high"))
        return cls(content["answer"], content["sentence"], Figure(value, low, high, 0), content["what"])


@dataclass(frozen=True)
class AuditRecord:
    """One audit without its images, as programs read it.

    adapter: what is known of the customization. base: what it was measured on; trained_on: what the file says.
    num_images: real ones of the subject. answers: question, answer, sentence. evaluators: who looked, by name.
    """

    adapter: Mapping[str, Any]
    base: str
    trained_on: Mapping[str, Any]
    num_images: int
    plan: Mapping[str, Any]
    seeds: Sequence[int]
    evaluators: Mapping[str, str | None]
    verdicts: Mapping[str, Verdict]
    answers: Sequence[tuple[str, str, str]]
    measures: Mapping[str, Measurement]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "adapter": dict(self.adapter),
            "base": {"id": self.base, "trained_on": dict(self.trained_on)},
            "num_pictures": self.num_images,
            "plan": dict(self.plan),
            "seeds": list(self.seeds),
            "witnesses": dict(self.evaluators),
            "verdict": {axis: verdict.to_json() for axis, verdict in self.verdicts.items()},
            "answers": [dict(zip(_ANSWER, one, strict=True)) for one in self.answers],
            "measures": {name: measured.to_json() for name, measured in self.measures.items()},
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "AuditRecord":
        """Raises ValueError, TypeError, LookupError or AttributeError: it is something else."""
        told = [tuple(str(one[name]) for name in _ANSWER) for one in content["answers"]]
        return cls(
            adapter=dict(content["adapter"]),
            base=str(content["base"]["id"]),
            trained_on=dict(content["base"].get("trained_on", {})),
            num_images=int(content["num_pictures"]),
            plan={"prompts": content["plan"]["prompts"], **content["plan"]},
            seeds=tuple(content["seeds"]),
            evaluators=dict(content["witnesses"]),
            verdicts={axis: Verdict.from_json(one) for axis, one in content.get("verdict", {}).items()},
            answers=tuple((question, answer, sentence) for question, answer, sentence in told),
            measures={name: Measurement.from_json(one) for name, one in content["measures"].items()},
            seconds=float(content.get("seconds", 0.0)),
        )


_ANSWER = ("question", "answer", "sentence")


def _number(value: float | None) -> float:
    """What could not be measured is null in a file."""
    return math.nan if value is None else float(value)
