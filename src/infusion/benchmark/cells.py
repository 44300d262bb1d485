"""Results of a benchmark on disk -> cells, pairs and failures; what does not read as one is refused."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from infusion.errors import UserError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Tile:
    """One picture of a cell's strip: the number of its place there, and what it was drawn from."""

    place: int
    kind: str
    prompt: str
    seed: int | None
    score: float | None


@dataclass(frozen=True)
class Cell:
    """What one row of the benchmark measured on one individual.

    benchmark: a digest of what all results of one benchmark share; None in a file that does not say. measures, nulls:
    only finite numbers.
    """

    path: Path
    benchmark: str | None
    row: str
    method: str
    paper: str
    settings: Mapping[str, Any]
    individual: int
    class_noun: str
    num_parameters: int | None
    file_bytes: int | None
    train_seconds: float | None
    seconds_per_image: float | None
    evaluation_seconds: float | None
    num_images: int
    measures: Mapping[str, float]
    nulls: Mapping[str, float]
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Pair:
    """What one row measured on two concepts in one prompt."""

    path: Path
    benchmark: str | None
    row: str
    individuals: tuple[int, ...]
    same_class: bool
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Failure:
    """A result that could not be made: a training that diverged."""

    path: Path
    benchmark: str | None
    row: str
    individuals: str
    reason: str


@dataclass(frozen=True)
class Check:
    """One test that the measures had to pass. passed: None where it is only shown."""

    name: str
    sentence: str
    passed: bool | None
    value: float | None
    low: float | None
    high: float | None
    num: int | None


def read_result(path: Path, parse: Callable[[Path, Mapping[str, Any]], _T]) -> _T:
    """A JSON file -> what `parse` makes of it; a UserError that names the file where it cannot."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return parse(path, content)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except json.JSONDecodeError as error:
        reason = f"it is no whole JSON (line {error.lineno})"
        raise UserError(f"{path} is damaged: {reason}. Delete it and run the benchmark again.") from error
    except KeyError as error:
        raise UserError(f"{path} is damaged: it has no {error}. Delete it and run the benchmark again.") from error
    except (ValueError, TypeError, AttributeError) as error:
        reason = "a value in it has the wrong kind"
        raise UserError(f"{path} is damaged: {reason} ({error}). Delete it and run the benchmark again.") from error


def or_failure(parse: Callable[[Path, Mapping[str, Any]], _T]) -> Callable[[Path, Mapping[str, Any]], _T | Failure]:
    """What `parse` makes of a result, unless the result says that it failed."""

    def parsed(path: Path, content: Mapping[str, Any]) -> _T | Failure:
        if content.get("failed"):
            return Failure(path, _benchmark(content), str(content["row"]), path.stem, str(content["failed"]))
        return parse(path, content)

    return parsed


def cell_of(path: Path, content: Mapping[str, Any]) -> Cell:
    tiles = [
        Tile(place, str(tile["kind"]), str(tile.get("prompt", "")), tile.get("seed"), finite(tile.get("score")))
        for place, tile in enumerate(content.get("tiles", ()))
    ]
    return Cell(
        path=path,
        benchmark=_benchmark(content),
        row=str(content["row"]),
        method=str(content.get("method", content["row"])),
        paper=str(content.get("paper") or ""),
        settings=dict(content.get("settings") or {}),
        individual=int(content["individual"]),
        class_noun=str(content["class_noun"]),
        num_parameters=content.get("num_parameters"),
        file_bytes=content.get("file_bytes"),
        train_seconds=finite(content.get("train_seconds")),
        seconds_per_image=finite(content.get("seconds_per_image")),
        evaluation_seconds=finite(content.get("evaluation_seconds")),
        num_images=int(content.get("num_images") or 0),
        measures=_finite_only(content["measures"]),
        nulls=_finite_only(content.get("nulls") or {}),
        tiles=tiles,
    )


def pair_of(path: Path, content: Mapping[str, Any]) -> Pair:
    individuals = tuple(int(individual) for individual in content["individuals"])
    return Pair(
        path=path,
        benchmark=_benchmark(content),
        row=str(content["row"]),
        individuals=individuals,
        same_class=bool(content["same_class"]),
        measures=_finite_only(content["measures"]),
    )


def _benchmark(content: Mapping[str, Any]) -> str | None:
    return str(content["benchmark"]) if content.get("benchmark") else None


def read_checks(path: Path) -> list[Check]:
    return read_result(path, _checks) if path.exists() else []


def _checks(path: Path, content: Mapping[str, Any]) -> list[Check]:
    return [
        Check(
            name=str(check["name"]),
            sentence=str(check.get("sentence", "")),
            passed=check["passed"],
            value=finite(check.get("value")),
            low=finite(check.get("low")),
            high=finite(check.get("high")),
            num=check.get("num"),
        )
        for check in content["checks"]
    ]


def finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _finite_only(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: number for name, value in values.items() if (number := finite(value)) is not None}
