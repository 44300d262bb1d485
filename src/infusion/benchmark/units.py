"""A specification -> units of work, each with a digest of all that its result depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from infusion.base import Base
from infusion.benchmark.individuals import Individual, concept_of
from infusion.benchmark.specification import Specification
from infusion.metrics.catalogue import BASE, NULL
from infusion.toybox.judges import judges_dir

_SCHEMA = 2  # to be raised when what is measured changes


@dataclass(frozen=True)
class Unit:
    """One result to be made: a row's cell for an individual, or for two in one prompt."""

    row: str
    individuals: tuple[Individual, ...]

    @property
    def path(self) -> Path:
        folder = "cells" if len(self.individuals) == 1 else "pairs"
        return Path(folder) / self.row / ("-".join(str(one.seed) for one in self.individuals) + ".json")


def units(spec: Specification) -> list[Unit]:
    """All results of a benchmark, two individuals at a time, so that whatever is done is a comparison and two processes
    have two classes to draw."""
    names = [BASE, NULL, *(row.name for row in spec.rows)]
    two = [spec.individuals[at : at + 2] for at in range(0, len(spec.individuals), 2)]
    cells = [Unit(name, (one,)) for some in two for name in names for one in some]
    composing = [row.name for row in spec.rows if row.method.composes]
    return cells + [Unit(name, pair) for pair in spec.pairs for name in composing]


@dataclass(frozen=True)
class Ground:
    """What all results stand on: digests of the base model's and of the judges' weights."""

    base: str
    judges: str

    @classmethod
    def of(cls, spec: Specification, base: Base) -> "Ground":
        files = sorted(path for path in judges_dir(spec.judges).rglob("*") if path.is_file())
        contents = hashlib.sha256(b"".join(path.read_bytes() for path in files))
        return cls(base.digest(), contents.hexdigest()[:16])


def adapter_digest(spec: Specification, row_name: str, individual: Individual, ground: Ground) -> str:
    """What a trained adapter depends on; for the base's rows, what stands in for one."""
    row = spec.row(row_name)
    if row is None:
        return digest_of({"base": ground.base, "row": row_name})
    drawing, method = spec.plan.drawing, row.method_for(individual)
    facts: dict[str, Any] = {
        "base": ground.base,
        "method": [method.name, asdict(method), asdict(row.training)],
        "pictures": _images_digest(individual),
        "class_noun": individual.class_noun,
    }
    if method.prior_preservation_weight:
        facts["class_pictures"] = [drawing.num_inference_steps, drawing.guidance_scale]
    return digest_of(facts)


def digest(spec: Specification, unit: Unit, ground: Ground) -> str:
    """What a result depends on, as 16 hexadecimal digits."""
    facts = {
        "schema": _SCHEMA,
        "ground": asdict(ground),
        "adapters": [adapter_digest(spec, unit.row, one, ground) for one in unit.individuals],
        "individuals": [asdict(one) for one in unit.individuals],
        "plan": asdict(spec.plan_for(unit.individuals[0].class_noun)),
        "pair_prompts": spec.pair_prompts if len(unit.individuals) > 1 else None,
    }
    return digest_of(facts)


def common_digest(spec: Specification, ground: Ground) -> str:
    """What all results of one benchmark share."""
    return digest_of({"schema": _SCHEMA, "ground": asdict(ground), "plan": asdict(spec.plan)})


@cache
def _images_digest(individual: Individual) -> str:
    concept = concept_of(individual)
    images = b"".join(image.tobytes() for image in (*concept.images, *concept.masks) if image)
    return hashlib.sha256(images).hexdigest()[:16]


def digest_of(facts: Mapping[str, Any]) -> str:
    """Facts -> 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def is_done(folder: Path, unit: Unit, key: str) -> bool:
    """Whether a result stands on disk, whole, of the digest `key`."""
    try:
        return bool(json.loads((folder / unit.path).read_text())["digest"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False
