"""Concepts of one picture each -> what a training step of all takes together, beside one after another.

    OMP_NUM_THREADS=1 python benchmarks/speed/together.py --concepts 16 --batch-size 1

Both ways stand ready in one process and take turns, a few steps of every concept each; joining (pictures encoded,
masks found) is the same for both and is left out. CPU time; the first round is dropped. "One after another" runs twice
in a round: how far from 1 the interval of their ratio reaches is the noise floor.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import HERE, Ratio

from infusion import Infusion, TrainingSettings, load_base, load_concept, train
from infusion.base import Base
from infusion.concepts.concept import Concept
from infusion.files import whole_file
from infusion.toybox.concepts import write_concept
from infusion.training.together import Job, train_together

ENDLESS = 100_000  # steps: whoever measures stops before
FIRST_INDIVIDUAL = 41100
Steps = Callable[[int], None]  # makes so many steps of every concept


def concepts(number: int, work: Path) -> list[Concept]:
    """Individuals of one picture each, with its mask."""
    found = []
    for seed in range(FIRST_INDIVIDUAL, FIRST_INDIVIDUAL + number):
        folder = work / f"individual-{seed}"
        noun = write_concept(seed, folder, num_images=1)
        found.append(load_concept(folder, noun, f"toy-{seed}"))
    return found


def jobs(base: Base, learnt: list[Concept], batch_size: int) -> list[Job]:
    settings = TrainingSettings(train_batch_size=batch_size, checkpointing_steps=ENDLESS)
    method = Infusion(max_train_steps=ENDLESS)
    return [Job(method.adapter(base, concept), concept, settings) for concept in learnt]


def one_after_another(base: Base, given: list[Job]) -> Steps:
    trainings = [train(base, job.adapter, job.concept, job.settings) for job in given]

    def make(steps: int) -> None:
        for training in trainings:
            for _ in range(steps):
                next(training)

    return make


def together(base: Base, given: list[Job], at_a_time: int) -> Steps:
    """In groups of so many, one group after another."""
    groups = [given[first : first + at_a_time] for first in range(0, len(given), at_a_time)]
    trainings = [(train_together(base, group, at_a_time), len(group)) for group in groups]

    def make(steps: int) -> None:
        for training, size in trainings:
            for _ in range(steps * size):
                next(training)

    return make


def seconds(make: Steps, steps: int) -> float:
    started = time.process_time()
    make(steps)
    return time.process_time() - started


def measured(ways: dict[str, Steps], steps: int, repeats: int) -> dict[str, list[float]]:
    rounds = [{name: seconds(make, steps) for name, make in ways.items()} for _ in range(repeats + 1)][1:]
    return {name: [taken[name] for taken in rounds] for name in ways}


def told(taken: dict[str, list[float]], number: int, steps: int) -> Iterator[str]:
    alone, again = taken["one after another"], taken["one after another, again"]
    floor = _times_as_fast(alone, again).off
    yield f"| way | CPU ms a step of a concept | concepts a CPU-hour (500 steps) | times as many, noise {floor:.1%} |"
    yield "|---|---|---|---|"
    for name, times in taken.items():
        step = median(times) / steps / number
        ratio = _times_as_fast(alone, times)
        cell = "1" if name == "one after another" else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        yield f"| {name} | {1000 * step:.1f} | {3600 / 500 / step:.1f} | {cell} |"
    yield f"\n{number} concepts; medians of {len(alone)} rounds, with {Ratio.spread(len(alone))}."


def _times_as_fast(reference: list[float], times: list[float]) -> Ratio:
    return Ratio.of([a / b for a, b in zip(reference, times, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=1, help="pictures per step of a concept")
    parser.add_argument("--at-a-time", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--steps", type=int, default=2, help="of every concept, a turn")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--base", default="toybox")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "together")
    parser.add_argument("--output-dir", "-o", type=Path, default=HERE / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base(given.base, "cpu")
    learnt = concepts(given.concepts, given.work)

    def fresh() -> list[Job]:
        return jobs(base, learnt, given.batch_size)

    ways: dict[str, Steps] = {"one after another": one_after_another(base, fresh())}
    for at_a_time in given.at_a_time:
        ways[f"{at_a_time} together"] = together(base, fresh(), at_a_time)
    ways["one after another, again"] = one_after_another(base, fresh())
    taken = measured(ways, given.steps, given.repeats)
    text = "\n".join(told(taken, given.concepts, given.steps)) + "\n"
    facts: dict[str, Any] = {"concepts": given.concepts, "batch_size": given.batch_size, "steps": given.steps}
    facts |= {"base": given.base, "torch": torch.__version__, "cpu_seconds": taken}
    name = f"together-{Path(given.base).name}-b{given.batch_size}"
    for ending, content in (("json", json.dumps(facts, indent=1) + "\n"), ("md", text)):
        with whole_file(given.output_dir / f"{name}.{ending}") as file:
            file.write_text(content, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
