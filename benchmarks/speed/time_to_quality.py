"""A teacher's residuals + ways to train -> how long each way takes until it has learnt what the teacher knows.

    OMP_NUM_THREADS=1 python benchmarks/speed/time_to_quality.py

The teacher is a trained concept. Students see its predictions with as much noise on them as they vary by themselves
(its standard deviation, drawn with every batch), and are judged without noise, on rows of other pictures that are the
same for all. A student is there when its squared error has fallen to a tenth of the untrained model's, by a straight
line between the logarithms of two judgements. CPU time of the steps alone: teacher, judging and the encoding of
pictures are left out. The ways take turns, as many rows each. Differences are taken within an individual; intervals
(Student's, 95%) are over individuals. Results are kept one by one; of other settings they begin anew.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import HERE
from torch import Tensor

from infusion import Infusion, TrainingSettings, load_base, train
from infusion.base import Base
from infusion.base.frozen_convolutions import lean_convolutions
from infusion.benchmark.individuals import Individual, concept_of
from infusion.concepts.concept import Concept
from infusion.concepts.masks import subject_masks
from infusion.files import whole_file
from infusion.intervals import mean
from infusion.methods.adapter import Adapter
from infusion.toybox.concepts import concept_images
from infusion.toybox.scene import individual
from infusion.training.dataset import Batch, step_generator, training_set
from infusion.training.loop import Drawn, Learner

FIRST_INDIVIDUAL = 45100
GOAL = 0.1  # of the untrained model's error
_TEACHER = Infusion(learning_rate=0.32, max_train_steps=60)
_NOISE_SEED = 99_989
_HELD_OUT_SEED, _AT_ONCE = 99_991, 16
_ENDLESS = 100_000  # steps: whoever looks on stops before


class Way(NamedTuple):
    """Rows of a step, AdamW's learning rate."""

    batch_size: int
    rate: float


def held_out(base: Base, concept: Concept, seed: int, num_rows: int) -> list[Batch]:
    """Rows of the pictures that follow those of training, as many, a few at a time."""
    num = len(concept.images)
    images, masks = concept_images(seed, num, first=num, class_noun=concept.class_noun)
    others = replace(concept, images=tuple(images), masks=tuple(masks))
    batch = training_set(base, others, subject_masks(base, others), flip=False).batch(
        num_rows, step_generator(_HELD_OUT_SEED, seed)
    )
    return [batch.rows(range(num_rows)[first : first + _AT_ONCE]) for first in range(0, num_rows, _AT_ONCE)]


def made_before(path: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The individuals of an interrupted run, or of one of fewer."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return before["individuals"] if {name: before.get(name) for name in facts} == facts else []


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


def error(base: Base, adapter: Adapter, judging: Sequence[Batch], targets: Sequence[Tensor]) -> float:
    """Mean over the rows of all batches."""
    squares = [
        (prediction(base, adapter, batch) - target).square() for batch, target in zip(judging, targets, strict=True)
    ]
    return torch.cat(squares).mean().item()


class Student:
    """An adapter in training on what the teacher predicts.

    curve: at every judgement the step, seconds of CPU so far, and the error as a share of the untrained model's.
    """

    def __init__(self, base: Base, concept: Concept, way: Way) -> None:
        method = Infusion(learning_rate=way.rate, max_train_steps=_ENDLESS)
        settings = TrainingSettings(
            train_batch_size=way.batch_size,
            checkpointing_steps=_ENDLESS,
            seed=1,  # not the teacher's batches
        )
        self.base, self.way = base, way
        self.learner = Learner(base, method.adapter(base, concept), concept, settings)
        self.seconds = 0.0
        self.curve = [(0, 0.0, 1.0)]

    @property
    def is_there(self) -> bool:
        return self.curve[-1][-1] <= GOAL

    @property
    def num_rows(self) -> int:
        return self.learner.step * self.way.batch_size

    def step(self, teacher: Adapter) -> None:
        for drawn in self.learner.draws():
            exact = prediction(self.base, teacher, drawn.batch)
            noise = torch.randn(exact.shape, generator=step_generator(_NOISE_SEED, self.learner.step))
            self._learn(drawn, exact + exact.std() * noise)

    def _learn(self, drawn: Drawn, target: Tensor) -> None:
        started = time.process_time()
        with lean_convolutions(self.base.network), self.base.customized(self.learner.adapter) as denoiser:
            batch = drawn.batch
            predicted = denoiser.predict(_noisy(self.base, batch), batch.timesteps, batch.conditioning)
            loss = (predicted - target).square().mean()
            loss.backward()
        self.learner.update(float(loss.detach()))
        self.seconds += time.process_time() - started

    def judged(self, error: float) -> None:
        self.curve.append((self.learner.step, self.seconds, error))


def followed(base: Base, seed: int, ways: Sequence[Way], given: argparse.Namespace) -> dict[str, Any]:
    """One individual: every way until it is there, or has learnt from `--rows` rows."""
    concept = concept_of(Individual(seed, individual(seed).class_noun))
    teacher = taught(base, concept)
    judging = held_out(base, concept, seed, given.judging_rows)
    targets = [prediction(base, teacher, batch) for batch in judging]
    untrained = error(base, _TEACHER.adapter(base, concept), judging, targets)
    students = [Student(base, concept, way) for way in ways]
    while waiting := [one for one in students if not one.is_there and one.num_rows < given.rows]:
        for student in waiting:
            for _ in range(given.every // student.way.batch_size):
                student.step(teacher)
            student.judged(error(base, student.learner.adapter, judging, targets) / untrained)
    return {
        "individual": seed,
        "class_noun": concept.class_noun,
        "untrained": untrained,
        "curves": [student.curve for student in students],
    }


def arrival(curve: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Steps and seconds until the goal; None if it was not reached."""
    if curve[-1][-1] > GOAL:
        return None
    (step, seconds, before), (last_step, last_seconds, after) = curve[-2:]
    share = math.log(before / GOAL) / math.log(before / after)
    return step + share * (last_step - step), seconds + share * (last_seconds - seconds)


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """One row for each way, in units of the first."""
    individuals = found["individuals"]
    yield "| rows a step | learning rate | there | steps | CPU s | × the first |"
    yield "|---|---|---|---|---|---|"
    arrivals = [[arrival(curve) for curve in one["curves"]] for one in individuals]
    for number, (batch_size, rate) in enumerate(found["ways"]):
        pairs = [(own[number], own[0]) for own in arrivals]
        there = [(own, first) for own, first in pairs if own and first]
        arrived = sum(own is not None for own, _ in pairs)
        cells = [f"{batch_size}", f"{rate:g}", f"{arrived} of {len(pairs)}"]
        if len(there) == len(pairs):
            steps, seconds = (mean([own[which] for own, _ in there]).value for which in (0, 1))
            ratio = mean([own[1] / first[1] for own, first in there])
            cells += [f"{steps:.0f}", f"{seconds:.1f}", ratio.told(2) if number else "1"]
        else:
            cells += ["-", "-", "-"]
        yield "| " + " | ".join(cells) + " |"
    yield (
        f"\n{len(individuals)} individuals. There: the error on {found['judging_rows']} held-out rows fell to {GOAL:g} "
        f"of the untrained model's before {found['rows']} rows were learnt from. {found['machine']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--individuals", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 1, 2, 8], help="the first is the unit")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.32, 0.64])
    parser.add_argument("--judging-rows", type=int, default=32)
    parser.add_argument("--every", type=int, default=16, help="rows between two judgements; a multiple of batch sizes")
    parser.add_argument("--rows", type=int, default=800, help="that a student may learn from")
    parser.add_argument("--output-dir", "-o", type=Path, default=HERE / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base("toybox", "cpu")
    base.freeze()
    ways = [Way(size, rate) for size in given.batch_sizes for rate in given.rates]
    path = given.output_dir / "time-to-quality-toybox.json"
    facts: dict[str, Any] = {"base": base.digest(), "goal": GOAL, "rows": given.rows, "every": given.every}
    facts |= {"judging_rows": given.judging_rows, "teacher": asdict(_TEACHER), "ways": [list(way) for way in ways]}
    facts |= {"machine": f"One thread, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"}
    found = facts | {"individuals": made_before(path, facts)}
    for seed in range(FIRST_INDIVIDUAL + len(found["individuals"]), FIRST_INDIVIDUAL + given.individuals):
        found["individuals"].append(followed(base, seed, ways, given))
        with whole_file(path) as file:
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{seed} is done", flush=True)
    lines = "\n".join(table(found)) + "\n"
    with whole_file(path.with_suffix(".md")) as file:
        file.write_text(lines, encoding="utf-8")
    print(lines)


if __name__ == "__main__":
    main()
