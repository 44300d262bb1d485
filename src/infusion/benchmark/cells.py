"""What was measured -> a result's JSON file, and a result's JSON file -> what was measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Measures = Mapping[str, float | None]  # None: could not be measured


@dataclass(frozen=True)
class Tile:
    """One image of a cell's strip, and what it was drawn from; of a training image nothing but its kind is known."""

    kind: str
    prompt: str = ""
    seed: int | None = None
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        if not self.prompt:
            return {"kind": self.kind}
        return {"kind": self.kind, "prompt": self.prompt, "seed": self.seed, "score": finite(self.score)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Tile":
        kind, prompt = str(content["kind"]), str(content.get("prompt", ""))
        return cls(kind, prompt, content.get("seed"), finite(content.get("score")))


@dataclass(frozen=True)
class Trained:
    """What is known of the adapter that a cell was drawn with."""

    method: str
    paper: str | None
    settings: Mapping[str, Any]
    num_parameters: int | None
    file_bytes: int | None
    train_seconds: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "paper": self.paper,
            "settings": dict(self.settings),
            "num_parameters": self.num_parameters,
            "file_bytes": self.file_bytes,
            "train_seconds": self.train_seconds,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Trained":
        return cls(
            method=str(content["method"]),
            paper=content.get("paper"),
            settings=dict(content.get("settings") or {}),
            num_parameters=content.get("num_parameters"),
            file_bytes=content.get("file_bytes"),
            train_seconds=finite(content.get("train_seconds")),
        )


@dataclass(frozen=True)
class Cell:
    """What one row of a benchmark measured on one individual.

    path: of the file. digest: of all that it depends on; benchmark: of what all results of one benchmark share; None in
    a file that does not say. trained: None in the base model's rows, of which the first has known_answers and the other
    null_ranks. nulls: what finite samples alone make of a measure. tiles: the strip of images beside the file.
    """

    path: Path
    digest: str | None
    benchmark: str | None
    row: str
    individual: int
    class_noun: str
    trained: Trained | None
    num_images: int
    seconds_per_image: float | None
    evaluation_seconds: float | None
    measures: Measures
    nulls: Measures
    tiles: tuple[Tile, ...]
    known_answers: Measures | None = None
    null_ranks: Measures | None = None

    @property
    def method(self) -> str:
        return self.trained.method if self.trained else self.row

    @property
    def paper(self) -> str:
        return (self.trained.paper if self.trained else None) or ""

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.trained.settings if self.trained else {}

    def to_json(self) -> dict[str, Any]:
        of_base = {"known_answers": self.known_answers, "null_ranks": self.null_ranks}
        return {
            "digest": self.digest,
            "benchmark": self.benchmark,
            "row": self.row,
            "individual": self.individual,
            "class_noun": self.class_noun,
            **(self.trained.to_json() if self.trained else {}),
            "num_images": self.num_images,
            "seconds_per_image": self.seconds_per_image,
            "evaluation_seconds": self.evaluation_seconds,
            "measures": dict(self.measures),
            "nulls": dict(self.nulls),
            "tiles": [tile.to_json() for tile in self.tiles],
            **{name: dict(values) for name, values in of_base.items() if values is not None},
        }

    @classmethod
    def from_json(cls, path: Path, content: Mapping[str, Any]) -> "Cell":
        return cls(
            path=path,
            digest=content.get("digest"),
            benchmark=_benchmark(content),
            row=str(content["row"]),
            individual=int(content["individual"]),
            class_noun=str(content["class_noun"]),
            trained=Trained.from_json(content) if "method" in content else None,
            num_images=int(content.get("num_images") or 0),
            seconds_per_image=finite(content.get("seconds_per_image")),
            evaluation_seconds=finite(content.get("evaluation_seconds")),
            measures=_measures(content["measures"]),
            nulls=_measures(content.get("nulls") or {}),
            tiles=tuple(map(Tile.from_json, content.get("tiles", ()))),
            known_answers=_measures(content["known_answers"]) if "known_answers" in content else None,
            null_ranks=_measures(content["null_ranks"]) if "null_ranks" in content else None,
        )


@dataclass(frozen=True)
class Pair:
    """What one row measured on two concepts in one prompt. path, digest, benchmark: as of a cell."""

    path: Path
    digest: str | None
    benchmark: str | None
    row: str
    individuals: tuple[int, ...]
    class_nouns: tuple[str, ...]
    num_images: int
    measures: Measures

    @property
    def same_class(self) -> bool:
        return len(set(self.class_nouns)) == 1

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "benchmark": self.benchmark,
            "row": self.row,
            "individuals": list(self.individuals),
            "class_nouns": list(self.class_nouns),
            "same_class": self.same_class,
            "num_images": self.num_images,
            "measures": dict(self.measures),
        }

    @classmethod
    def from_json(cls, path: Path, content: Mapping[str, Any]) -> "Pair":
        return cls(
            path=path,
            digest=content.get("digest"),
            benchmark=_benchmark(content),
            row=str(content["row"]),
            individuals=tuple(map(int, content["individuals"])),
            class_nouns=tuple(map(str, content["class_nouns"])),
            num_images=int(content.get("num_images") or 0),
            measures=_measures(content["measures"]),
        )


@dataclass(frozen=True)
class Failure:
    """A result that could not be made: a training that diverged. path, digest, benchmark: as of a cell."""

    path: Path
    digest: str | None
    benchmark: str | None
    row: str
    reason: str

    @property
    def individuals(self) -> str:
        return self.path.stem

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "benchmark": self.benchmark,
            "row": self.row,
            "measures": {},
            "failed": self.reason,
        }

    @classmethod
    def from_json(cls, path: Path, content: Mapping[str, Any]) -> "Failure":
        return cls(path, content.get("digest"), _benchmark(content), str(content["row"]), str(content["failed"]))


_Result = TypeVar("_Result", Cell, Pair)


def or_failure(kind: type[_Result], path: Path, content: Mapping[str, Any]) -> _Result | Failure:
    """A file's content -> a result of a kind, unless the file says that it could not be made."""
    return Failure.from_json(path, content) if content.get("failed") else kind.from_json(path, content)


def rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    """To six digits; what could not be measured as None, because JSON has no NaN."""
    return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}


def finite(value: Any) -> float | None:
    """A number as a file has it; None for what is none."""
    return float(value) if value is not None and math.isfinite(value) else None


def known(measures: Measures) -> dict[str, float]:
    """Those that could be measured."""
    return {name: value for name, value in measures.items() if value is not None}


def _measures(content: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: finite(value) for name, value in content.items()}


def _benchmark(content: Mapping[str, Any]) -> str | None:
    return str(content["benchmark"]) if content.get("benchmark") else None
