"""Rows that take turns -> what each took: medians and minima, ratios within a round, and how far to trust them."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import quantile_test

HERE = Path(__file__).parent
NOISY = 0.05  # a self-ratio that may be off by more than this makes the whole run suspect
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}


@dataclass(frozen=True)
class Row:
    """name: in the table. told: what its worker is told beside what all are told."""

    name: str
    worker: str
    told: Mapping[str, Any] = field(default_factory=dict)


class Failed(Exception):
    """A worker ended by itself."""


class Worker:
    """A row's process. `first`: what it said after its first step; to it comes the wall time since it was started."""

    def __init__(self, row: Row, told: Mapping[str, Any], log: Path) -> None:
        self.row, self.log = row, log
        words = json.dumps({**told, **row.told, "worker": row.worker})
        on_cpu = {"ACCELERATE_USE_CPU": "1"} if told["device"] == "cpu" else {}
        started = time.perf_counter()
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "workers.py"), words],
                env=os.environ | ENVIRONMENT | on_cpu,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.first = self._answer() | {"wall": time.perf_counter() - started}

    def turn(self, steps: int) -> dict[str, float]:
        """Make steps; the times are of one."""
        assert self.process.stdin
        print(steps, file=self.process.stdin, flush=True)
        answer = self._answer()
        times = {name: answer[name] / steps for name in ("cpu", "wall", "network", "device") if name in answer}
        return answer | times

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
            raise Failed(f"{self.row.name} ended by itself; the last lines of {self.log}:\n" + "\n".join(tail))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Ratio(NamedTuple):
    """The median of ratios taken within rounds, and its 95% interval, which supposes only that rounds are independent;
    of fewer than six rounds, which have no such interval, all that they span."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, taken: Sequence[float]) -> "Ratio":
        all_of_them = min(taken), max(taken)
        low, high = quantile_test(taken).confidence_interval(0.95) if len(taken) > 5 else all_of_them
        return cls(statistics.median(taken), float(low), float(high))

    @staticmethod
    def spread(num_rounds: int) -> str:
        """What the bounds are."""
        return "95% intervals" if num_rounds > 5 else "all that they span"

    @property
    def off(self) -> float:
        """How far from 1 the interval reaches."""
        return max(abs(self.low - 1), abs(self.high - 1))


@dataclass(frozen=True)
class Measured:
    """rounds: one entry for each repeat. about: what the row said after its first step."""

    row: Row
    about: Mapping[str, Any]
    rounds: Sequence[Mapping[str, float]]

    def of(self, name: str) -> list[float]:
        return [taken[name] for taken in self.rounds]


def take_turns(
    rows: Sequence[Row], told: Mapping[str, Any], logs: Path, steps: int, repeats: int, warm_ups: int = 1
) -> list[Measured]:
    """A B C A B C ...: all rows are started, then make `steps` steps each, again and again."""
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(row, told, logs / f"{number}-{row.worker}.log"))
            for number, row in enumerate(rows)
        ]
        rounds = [[worker.turn(steps) for worker in workers] for _ in range(warm_ups + repeats)][warm_ups:]
    return [
        Measured(row, worker.first, [taken[number] for taken in rounds])
        for number, (row, worker) in enumerate(zip(rows, workers, strict=True))
    ]


def start_up(rows: Sequence[Row], told: Mapping[str, Any], logs: Path, repeats: int) -> list[Measured]:
    """From nothing to the first step: every row is started once a round."""
    logs.mkdir(parents=True, exist_ok=True)
    firsts: list[list[dict[str, Any]]] = [[] for _ in rows]
    for round_number in range(repeats + 1):
        for number, row in enumerate(rows):
            with Worker(row, told, logs / f"{number}-{row.worker}.log") as worker:
                if round_number:  # the first round reads files that are not in memory yet
                    firsts[number].append(worker.first)
    return [Measured(row, first[0], first) for row, first in zip(rows, firsts, strict=True)]


def ratios(measured: Sequence[Measured], reference: str, unit: str) -> dict[str, Ratio]:
    """By row its time in units of the reference's in the same round."""
    of = {one.row.name: one.of(unit) for one in measured}
    return {name: Ratio.of([x / y for x, y in zip(times, of[reference], strict=True)]) for name, times in of.items()}


def result(of: str, measured: Sequence[Measured], references: Sequence[str], again: str, unit: str) -> dict[str, Any]:
    """All of a comparison, for a JSON file.

    of: what the times are of. unit: "cpu" or "device", whichever times are compared. references: rows whose times are
    the units of ratios; the first of them ran twice, the second time as `again`.
    """
    by_reference = {name: ratios(measured, name, unit) for name in references}
    floor = by_reference[references[0]][again].off
    rows = {}
    for one in measured:
        times = {
            name: {"median": statistics.median(one.of(name)), "minimum": min(one.of(name)), "rounds": one.of(name)}
            for name in ("cpu", "wall", "device", "network")
            if name in one.rounds[0]
        }
        rows[one.row.name] = times | {
            "ratios": {name: found[one.row.name]._asdict() for name, found in by_reference.items()},
            **{name: value for name, value in one.about.items() if name not in ("cpu", "wall", "resident_bytes")},
            **{name: max(one.of(name)) for name in ("peak_bytes", "peak_device_bytes") if name in one.rounds[0]},
        }
        if "network" in times:
            shares = [1 - taken["network"] / taken[unit] for taken in one.rounds]
            rows[one.row.name]["share_outside_network"] = statistics.median(shares)
    return {
        "of": of,
        "unit": unit,
        "noise_floor": floor,
        "noisy": floor > NOISY,
        "rows": rows,
    }


def table(found: Mapping[str, Any]) -> str:
    """A result as Markdown."""
    unit, rows = found["unit"], found["rows"]
    some = next(iter(rows.values()))
    references = list(some["ratios"])
    head = [found["of"], f"{unit} ms", "least", "wall ms", "least", *(f"× {name}" for name in references)]
    head += ["peak MB"] * ("peak_bytes" in some) + ["on device MB"] * ("peak_device_bytes" in some)
    head += ["outside the network"] * ("network" in some)
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        cells = [name]
        for clock in (unit, "wall"):
            cells += [f"{1000 * row[clock][kind]:.4g}" for kind in ("median", "minimum")]
        cells += [_told(ratio, found["noise_floor"]) for ratio in row["ratios"].values()]
        cells += [f"{row[bytes_] / 1e6:.0f}" for bytes_ in ("peak_bytes", "peak_device_bytes") if bytes_ in row]
        if "network" in row:
            outside = row["share_outside_network"]
            cells.append(f"{1000 * outside * row[unit]['median']:.3g} ms, {outside:.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    noise = (
        f"Ratios are medians of {found['repeats']} rounds, with {Ratio.spread(found['repeats'])}. "
        f"Noise floor {found['noise_floor']:.2%}: so far from 1 does the interval of a row's ratio to itself reach. "
        "Ratios marked ≈ are within twice that of 1, and say nothing."
    )
    if found["noisy"]:
        noise += " **Noisy run: quote it, if at all, with this floor.**"
    return "\n".join([*lines, "", noise])


def _told(ratio: Mapping[str, float], floor: float) -> str:
    if ratio["low"] == ratio["high"] == 1:
        return "1"
    within = " ≈" if abs(ratio["median"] - 1) < 2 * floor else ""
    return f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}){within}"
