"""Audits -> the JSON file for programs."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from infusion.auditing.answers import Answer, answers
from infusion.auditing.limits import AXES, axis_figure
from infusion.auditing.result import AuditResult, Curve
from infusion.intervals import Figure
from infusion.metrics.catalogue import measure_of
from infusion.sharing.audit_record import AuditRecord, Measurement, Verdict
from infusion.versions import versions

_UNKNOWN = Figure(math.nan, math.nan, math.nan, 0)


def to_json(audits: Sequence[AuditResult], curve: Curve | None = None) -> str:
    """Everything measured, with intervals, and all that it depends on, for programs."""
    steps = []
    if curve:
        steps = [asdict(one) | {"score": one.score, "kept": one is curve.kept} for one in curve.checks]
    content = {
        "definition": "Every measure is this project's definition of it.",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(with_infusion=True),
        "audits": [record_of(found).to_json() for found in audits],
        "checkpoints": steps,
    }
    return json.dumps(_for_json(content), indent=2, allow_nan=False) + "\n"


def record_of(found: AuditResult) -> AuditRecord:
    """An audit as it is kept in a file: without images."""
    told = answers(found)
    of_adapter = ("concept_name", "class_noun", "method", "paper", "strength", "settings")
    return AuditRecord(
        adapter={
            "name": found.name,
            "file": found.file_name,
            "bytes": found.file_bytes,
            "num_parameters": found.num_parameters,
            **{name: found.about[name] for name in of_adapter},
            "training": found.about["training"],
        },
        base=found.base,
        trained_on=found.about["base"],
        num_images=len(found.training),
        plan=asdict(found.plan),
        seeds=tuple(range(len(found.plan.prompt_of))),
        evaluators=found.evaluators,
        verdicts={one.axis: _verdict(found, one) for one in told if one.axis},
        answers=tuple((one.question, one.word, one.sentence) for one in told),
        measures={name: _measurement(found, name, figure) for name, figure in found.own.measures.items()},
        seconds=round(found.seconds, 1),
    )


def _verdict(found: AuditResult, answer: Answer) -> Verdict:
    axis = str(answer.axis)
    return Verdict(answer.word, answer.sentence, axis_figure(found, axis) or _UNKNOWN, AXES[axis].sentence)


def _measurement(found: AuditResult, name: str, figure: Figure) -> Measurement:
    base, measure = found.untouched.measures.get(name), measure_of(name)
    return Measurement(
        figure=figure,
        base=base.value if base else None,
        null=found.nulls.get(name),
        chance=found.own.chances.get(name),
        better=measure.better,
        sentence=measure.sentence,
    )


def _for_json(content: Any) -> Any:
    """JSON has no NaN; six digits of every number."""
    if isinstance(content, dict):
        return {name: _for_json(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_for_json(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content
