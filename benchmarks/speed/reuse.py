"""Individuals -> what a training step costs where several share a foundation pass, and what is learnt by them.

    OMP_NUM_THREADS=1 python benchmarks/speed/reuse.py

Every individual is learnt from five pictures with `foundation_reuse` 1 and with each of `--reuse`, and judged by its
denoising loss on other pictures, with noise, timesteps and prompts drawn once for all. Compared are equal numbers of
steps, and equal arithmetic: the fewer steps of `foundation_reuse` 1 that cost what the others do. Arithmetic is
counted; differences are taken within an individual, and intervals (Student's, 95%) over individuals.
"""

import argparse
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from infusion import Infusion, TrainingSettings, load_base, train
from infusion.base import Base
from infusion.benchmark.run import Individual, concept_of
from infusion.concepts.concept import Concept
from infusion.concepts.masks import subject_masks
from infusion.files import whole_file
from infusion.intervals import Figure, mean
from infusion.methods import Adapter
from infusion.toybox.concepts import concept_pictures
from infusion.toybox.scene import individual
from infusion.training.dataset import Batch, step_generator, training_set
from infusion.training.loop import denoising_loss

FIRST_INDIVIDUAL = 45000
HERE = Path(__file__).parent
_HELD_OUT_SEED, _AT_ONCE = 99_991, 16


def held_out(base: Base, concept: Concept, seed: int, num_rows: int) -> list[Batch]:
    """Rows of the pictures that follow those of training, as many, a few at a time."""
    num = len(concept.images)
    images, masks = concept_pictures(seed, num, first=num, class_noun=concept.class_noun)
    others = replace(concept, images=tuple(images), masks=tuple(masks))
    batch = training_set(base, others, subject_masks(base, others), flip=False).batch(
        num_rows, step_generator(_HELD_OUT_SEED, seed)
    )
    return [batch.rows(range(num_rows)[first : first + _AT_ONCE]) for first in range(0, num_rows, _AT_ONCE)]


@torch.no_grad()
def loss(base: Base, adapter: Adapter, batches: Sequence[Batch]) -> float:
    """Mean over the rows of all batches."""
    with base.customized(adapter) as denoiser:
        losses = [denoising_loss(base, denoiser, batch) * len(batch.latents) for batch in batches]
    return float(sum(losses)) / sum(len(batch.latents) for batch in batches)


def flops(base: Base, concept: Concept, method: Infusion, settings: TrainingSettings) -> float:
    """Of a step, a picture: mean over the steps that share a pass of the foundation."""
    reuse = settings.foundation_reuse
    training = train(base, method.adapter(base, concept), concept, settings)
    list(islice(training, reuse))  # before the first step pictures and prompts are encoded
    with FlopCounterMode(display=False) as counter:
        list(islice(training, reuse))
    return counter.get_total_flops() / reuse / settings.train_batch_size


def followed(
    base: Base,
    concept: Concept,
    method: Infusion,
    settings: TrainingSettings,
    judging: Sequence[Batch],
    at: Collection[int],
) -> dict[int, float]:
    """The loss after the steps `at`."""
    adapter = method.adapter(base, concept)
    training = train(base, adapter, concept, settings)
    return {now.step: loss(base, adapter, judging) for now in training if now.step in at}


def compared(individuals: Sequence[Mapping[str, Any]], steps: int, equal: Mapping[int, int]) -> dict[int, list[Figure]]:
    """By `foundation_reuse` how far the loss fell in `steps`, in units of how far it fell with 1: in as many steps, and
    in those of `equal`, which cost the same."""

    def fell(one: Mapping[str, Any], reuse: int, step: int) -> float:
        return one["untrained"] - one["loss"][str(reuse)][str(step)]

    return {
        reuse: [mean([fell(one, reuse, steps) / fell(one, 1, of_1) for one in individuals]) for of_1 in (steps, fewer)]
        for reuse, fewer in equal.items()
    }


def table(found: Mapping[str, Any], steps: int, cost: Mapping[int, float], equal: Mapping[int, int]) -> Iterator[str]:
    head = [
        "foundation_reuse",
        "GFLOP of a step, a picture",
        "of that with 1",
        f"in {steps} steps learnt, of that with 1",
    ]
    yield "| " + " | ".join([*head, "the same at equal arithmetic"]) + " |"
    yield "|---|---|---|---|---|"
    yield f"| 1 | {cost[1] / 1e9:.2f} | 1 | 1 | 1 |"
    for reuse, figures in compared(found["individuals"], steps, equal).items():
        as_many, as_dear = (figure.told(3) for figure in figures)
        price = f"{cost[reuse] / 1e9:.2f} | {cost[reuse] / cost[1]:.3f}"
        yield f"| {reuse} | {price} | {as_many} | {as_dear}, {equal[reuse]} steps |"
    yield f"\n{len(found['individuals'])} individuals. Learnt is how far the held-out loss fell."


def made_before(path: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The individuals of an interrupted run, or of one of fewer."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return before["individuals"] if {name: before.get(name) for name in facts} == facts else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--individuals", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--reuse", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--learning-rate", type=float, default=0.32)
    parser.add_argument("--rows", type=int, default=64, help="of the held-out loss")
    parser.add_argument("--output-dir", "-o", type=Path, default=HERE / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base("toybox", "cpu")
    method = Infusion(learning_rate=given.learning_rate, max_train_steps=given.steps)
    ways = {reuse: TrainingSettings(foundation_reuse=reuse) for reuse in (1, *given.reuse)}
    seeds = range(FIRST_INDIVIDUAL, FIRST_INDIVIDUAL + given.individuals)
    concepts = {seed: concept_of(Individual(seed, individual(seed).class_noun)) for seed in seeds}
    cost = {reuse: flops(base, concepts[seeds[0]], method, settings) for reuse, settings in ways.items()}
    equal = {reuse: round(given.steps * cost[reuse] / cost[1]) for reuse in given.reuse}
    path = given.output_dir / "reuse-toybox.json"
    facts: dict[str, Any] = {"base": base.digest(), "steps": given.steps, "learning_rate": given.learning_rate}
    facts |= {"rows": given.rows, "flops": {str(reuse): count for reuse, count in cost.items()}}
    found = facts | {"individuals": made_before(path, facts)}
    done = {one["individual"] for one in found["individuals"]}
    for seed, concept in concepts.items():
        if seed in done:
            continue
        judging = held_out(base, concept, seed, given.rows)
        losses = {}
        for reuse, settings in ways.items():
            at = {given.steps} if reuse > 1 else {given.steps, *equal.values()}
            losses[str(reuse)] = followed(base, concept, method, settings, judging, at)
        untrained = loss(base, method.adapter(base, concept), judging)
        found["individuals"].append(
            {"individual": seed, "class_noun": concept.class_noun, "untrained": untrained, "loss": losses}
        )
        text = json.dumps(found, indent=1) + "\n"
        with whole_file(path) as file:
            file.write_text(text, encoding="utf-8")
        print(f"{seed} is done", flush=True)
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = "\n".join(table(found, given.steps, cost, equal)) + "\n"
    with whole_file(path.with_suffix(".md")) as file:
        file.write_text(lines, encoding="utf-8")
    print(lines)


if __name__ == "__main__":
    main()
