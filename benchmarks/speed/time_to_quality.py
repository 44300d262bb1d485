"""A teacher's residuals + ways to train -> how long each way takes until it has learnt what the teacher knows.

    OMP_NUM_THREADS=1 python benchmarks/speed/time_to_quality.py

The teacher is a trained concept. Students see its predictions with as much noise on them as they vary by themselves
(its standard deviation, drawn anew in every step), and are judged without noise, on rows of other pictures that are
the same for all. A student is there when its squared error has fallen to a tenth of the untrained model's. CPU time of
the steps alone: teacher, judging and the encoding of pictures are left out. The ways take turns, a step each, so that
what else the machine does falls on all alike. Differences are taken within an individual; intervals (Student's, 95%)
are over individuals.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from reuse import HERE, held_out
from torch import Tensor

from infusion import Infusion, TrainingSettings, load_base, train
from infusion.base import Base
from infusion.base.frozen_convolutions import lean_convolutions
from infusion.benchmark import Individual, concept_of
from infusion.concept import Concept
from infusion.dataset import Batch, step_generator
from infusion.files import whole_file
from infusion.intervals import mean
from infusion.methods import Adapter
from infusion.toybox.scene import individual
from infusion.training import Drawn, Learner

FIRST_INDIVIDUAL = 45100
GOAL = 0.1  # of the untrained model's error
_TEACHER = Infusion(learning_rate=0.32, max_train_steps=60)
_NOISE_SEED = 99_989


class Way(NamedTuple):
    """Pictures of a step, steps that share a foundation pass, AdamW's learning rate."""

    batch_size: int
    reuse: int
    rate: float


def taught(base: Base, concept: Concept) -> Adapter:
    adapter = _TEACHER.adapter(base, concept)
    for _ in train(base, adapter, concept):
        pass
    return adapter


@torch.no_grad()
def prediction(base: Base, adapter: Adapter, batch: Batch) -> Tensor:
    with base.customized(adapter) as denoiser:
        return denoiser.predict(_noisy(base, batch), batch.timesteps, batch.conditioning)


def _noisy(base: Base, batch: Batch) -> Tensor:
    return base.noise_schedule.add_noise(batch.latents, batch.noise, batch.timesteps)


class Student:
    """An adapter in training on what the teacher predicts. `seconds` of CPU, `error`: judged last, as a share."""

    def __init__(self, base: Base, concept: Concept, way: Way, every: int) -> None:
        method = Infusion(learning_rate=way.rate, max_train_steps=10**5)
        settings = TrainingSettings(
            train_batch_size=way.batch_size, foundation_reuse=way.reuse, checkpointing_steps=10**5
        )
        self.base, self.way = base, way
        self.learner = Learner(base, method.adapter(base, concept), concept, settings)
        self.seconds, self.error = 0.0, 1.0
        self._between_judgements = max(1, every // way.batch_size)

    @property
    def is_to_be_judged(self) -> bool:
        return self.learner.step % self._between_judgements == 0

    def step(self, teacher: Adapter) -> None:
        for drawn in self.learner.draws():
            exact = prediction(self.base, teacher, drawn.batch)
            noise = torch.randn(exact.shape, generator=step_generator(_NOISE_SEED, self.learner.step))
            self._learn(drawn, exact + exact.std() * noise)

    def _learn(self, drawn: Drawn, target: Tensor) -> None:
        started = time.process_time()
        customized = self.base.customized(self.learner.adapter, foundation=drawn.foundation)
        with lean_convolutions(self.base.network), customized as denoiser:
            batch = drawn.batch
            predicted = denoiser.predict(_noisy(self.base, batch), batch.timesteps, batch.conditioning)
            loss = (predicted - target).square().mean()
            loss.backward()
        self.learner.update(float(loss.detach()))
        self.seconds += time.process_time() - started


def judged(base: Base, adapter: Adapter, judging: Sequence[Batch], targets: Sequence[Tensor]) -> float:
    errors = [
        (prediction(base, adapter, batch) - target).square().mean().item()
        for batch, target in zip(judging, targets, strict=True)
    ]
    return sum(errors) / len(errors)


def followed(base: Base, seed: int, ways: Sequence[Way], given: argparse.Namespace) -> dict[str, Any]:
    """One individual: every way until it is there, or until it has seen `--pictures`."""
    concept = concept_of(Individual(seed, individual(seed).class_noun))
    teacher = taught(base, concept)
    judging = held_out(base, concept, seed, given.rows)
    targets = [prediction(base, teacher, batch) for batch in judging]
    untrained = judged(base, _TEACHER.adapter(base, concept), judging, targets)
    students = [Student(base, concept, way, given.every) for way in ways]
    waiting = list(students)
    while waiting:
        for student in waiting:
            student.step(teacher)
            if student.is_to_be_judged:
                student.error = judged(base, student.learner.adapter, judging, targets) / untrained
        waiting = [
            student
            for student in waiting
            if student.error > GOAL and student.learner.step * student.way.batch_size < given.pictures
        ]
    return {
        "individual": seed,
        "class_noun": concept.class_noun,
        "untrained": untrained,
        "ways": [
            {**student.way._asdict(), "steps": student.learner.step, "cpu": student.seconds, "error": student.error}
            for student in students
        ],
    }


def table(individuals: Sequence[Mapping[str, Any]], pictures: int) -> Iterator[str]:
    """One row for each way, in units of the first."""
    yield "| pictures a step | foundation_reuse | learning rate | there | steps | CPU s | × the first row |"
    yield "|---|---|---|---|---|---|---|"
    for number, way in enumerate(individuals[0]["ways"]):
        taken = [one["ways"][number] for one in individuals]
        there = [one["error"] <= GOAL for one in taken]
        cells = [f"{way['batch_size']}", f"{way['reuse']}", f"{way['rate']:g}", f"{sum(there)} of {len(there)}"]
        if all(there) and all(one["ways"][0]["error"] <= GOAL for one in individuals):
            of_first = mean([one["ways"][number]["cpu"] / one["ways"][0]["cpu"] for one in individuals])
            steps, cpu = (mean([one[name] for one in taken]).value for name in ("steps", "cpu"))
            ratio = "1" if number == 0 else f"{of_first.value:.2f} ({of_first.low:.2f} to {of_first.high:.2f})"
            cells += [f"{steps:.0f}", f"{cpu:.1f}", ratio]
        else:
            cells += ["-", "-", "-"]
        yield "| " + " | ".join(cells) + " |"
    yield (
        f"\n{len(individuals)} individuals. There: the error on held-out rows fell to {GOAL:g} of the untrained "
        f"model's within {pictures} pictures."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--individuals", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 1, 2, 8], help="the first is the unit")
    parser.add_argument("--reuse", type=int, nargs="+", default=[2, 4], help="with the first of the batch sizes")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.32, 0.64])
    parser.add_argument("--rows", type=int, default=32, help="of judging")
    parser.add_argument("--every", type=int, default=16, help="pictures between two judgements")
    parser.add_argument("--pictures", type=int, default=800, help="that a student may see")
    parser.add_argument("--output-dir", "-o", type=Path, default=HERE / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base("toybox", "cpu")
    base.freeze()
    sizes = [(size, 1) for size in given.batch_sizes] + [(given.batch_sizes[0], reuse) for reuse in given.reuse]
    ways = [Way(size, reuse, rate) for size, reuse in sizes for rate in given.rates]
    path = given.output_dir / "time-to-quality-toybox.json"
    facts: dict[str, Any] = {"base": base.digest(), "goal": GOAL, "rows": given.rows, "every": given.every}
    facts |= {"pictures": given.pictures, "noise_seed": _NOISE_SEED, "ways": [list(way) for way in ways]}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = before["individuals"] if {name: before.get(name) for name in facts} == facts else []
    for seed in range(FIRST_INDIVIDUAL + len(found), FIRST_INDIVIDUAL + given.individuals):
        found.append(followed(base, seed, ways, given))
        with whole_file(path) as file:
            file.write_text(json.dumps(facts | {"individuals": found}, indent=1) + "\n", encoding="utf-8")
        print(f"{seed} is done", flush=True)
    lines = "\n".join(table(found[: given.individuals], given.pictures)) + "\n"
    with whole_file(path.with_suffix(".md")) as file:
        file.write_text(lines, encoding="utf-8")
    print(lines)


if __name__ == "__main__":
    main()
