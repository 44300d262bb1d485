"""One customized model's measures -> all figures in a JSON file."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import infusion
from infusion.auditing.answers import Answer, answers
from infusion.auditing.limits import AXES, axis_figure
from infusion.auditing.result import AuditResult, Curve
from infusion.intervals import Figure
from infusion.metrics.catalogue import measure_of


def to_json(audited: Sequence[AuditResult], curve: Curve | None = None) -> str:
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


def _audit(found: AuditResult) -> dict[str, Any]:
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


def _verdict(found: AuditResult, answer: Answer) -> dict[str, Any]:
    figure = axis_figure(found, str(answer.axis)) or Figure(math.nan, math.nan, math.nan, 0)
    return {
        "answer": answer.word,
        "sentence": answer.sentence,
        **{name: getattr(figure, name) for name in ("value", "low", "high")},
        "what": AXES[str(answer.axis)].sentence,
    }


def _measured(found: AuditResult, name: str, figure: Figure) -> dict[str, Any]:
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
