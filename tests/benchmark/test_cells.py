"""Results are written and read by the same classes."""

import json
from pathlib import Path
from typing import Any

import pytest

from infusion.benchmark.cells import Cell, Failure, Pair, or_failure

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "toybox"


@pytest.mark.parametrize("name", ["full", "ladder"])
def test_what_is_read_is_written_again_byte_for_byte(name: str) -> None:
    """Every committed result, through the classes that its writer and its reader share."""
    paths = [path for kind in ("cells", "pairs") for path in (COMMITTED / name / kind).glob("*/*.json")]
    assert len(paths) >= 35
    for path in paths:
        kind: Any = Cell if path.parent.parent.name == "cells" else Pair
        read = or_failure(kind, path, json.loads(path.read_text()))
        assert json.dumps(read.to_json(), indent=1, sort_keys=True) + "\n" == path.read_text(), path


def test_a_failure_is_written_and_read(tmp_path: Path) -> None:
    failure = Failure(tmp_path / "1-2.json", "key", "common", "lora", "Training diverged at step 1.")
    assert or_failure(Pair, failure.path, failure.to_json()) == failure and failure.individuals == "1-2"
