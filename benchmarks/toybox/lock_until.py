"""Individuals, learnt with Infusion -> what is lost when the lock is released before the last step of the sampler.

    OMP_NUM_THREADS=1 python benchmarks/toybox/lock_until.py benchmarks/toybox/full.toml -o benchmarks/toybox/full

Every individual is learnt as in the benchmark, then drawn with each `--lock-until`; every picture has a noise of its
own, which is the same for all shares. Told are how far pictures are from the exact ones (mean difference of pixels, in
% of their range) and what the judges b say less what they say of the exact ones. Differences are taken within an
individual; intervals (Student's, 95%) are over individuals, who are not those of the benchmark. Results are kept one by
one; of other settings they begin anew.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from infusion.benchmark.individuals import Individual, real_images
from infusion.benchmark.run import Workshop, trained
from infusion.benchmark.specification import Row, Specification, load_specification
from infusion.evaluation.drawing import decoded, draw
from infusion.evaluation.evaluate import Drawn, gather
from infusion.evaluation.reference import Reference
from infusion.files import whole_file
from infusion.intervals import mean
from infusion.metrics.catalogue import METRICS
from infusion.metrics.metric import measure
from infusion.terminal import no_loading_bars

FIRST_INDIVIDUAL = 45_200
EXACT, BASE = "1", "the base"


def drawing_plan(spec: Specification, steps: int) -> Specification:
    """The benchmark's prompts, one picture each, in enough steps for a share of them to mean something."""
    drawing = replace(spec.plan.drawing, num_seeds=1, num_class_pictures=3, num_inference_steps=steps)
    return replace(spec, plan=replace(spec.plan, drawing=drawing))


def measured(shop: Workshop, row: Row, individual: Individual, shares: Sequence[float]) -> dict[str, Any]:
    """By share, and for the base: the difference to the exact pictures, facts and identity."""
    adapter, _ = trained(shop, row, individual)
    plan = shop.spec.plan_for(individual.class_noun)
    first_seed = (individual.seed - FIRST_INDIVIDUAL) * len(plan.prompts)
    reference = Reference(shop.base, individual.class_noun, plan, shop.evaluators, first_seed=first_seed)
    texts = reference.texts(f"<{adapter.concept_name}>")
    images = {
        f"{share:g}": decoded(shop.base, draw(shop.base, plan, texts, reference.own_seeds, [adapter], lock_until=share))
        for share in shares
    }
    images[BASE] = reference.images
    real, found = real_images(individual, plan), {}
    for name, some in images.items():
        evidence = gather(reference, real, Drawn(some, reference.class_images))
        measures = measure(evidence, {name: METRICS[name] for name in ("facts", "identity")})
        found[name] = {
            "pixels": (some - images[EXACT]).abs().mean().item(),
            "facts": measures["facts"].value,
            "identity": measures["identity"].value,
        }
    return {"individual": individual.seed, "class_noun": individual.class_noun, "measured": found}


def table(individuals: Sequence[Mapping[str, Any]], num_pictures: int, steps: int) -> Iterator[str]:
    yield "| lock_until | pixels off, % of their range | facts, less those of 1 | identity, less that of 1 |"
    yield "|---|---|---|---|"
    for name in individuals[0]["measured"]:
        own, exact = ([one["measured"][which] for one in individuals] for which in (name, EXACT))
        pixels = mean([100 * some["pixels"] for some in own])
        facts, identity = (
            mean([a[kind] - b[kind] for a, b in zip(own, exact, strict=True)]) for kind in ("facts", "identity")
        )
        yield f"| {name} | {pixels.told(2)} | {facts.told(3)} | {identity.told(3)} |"
    yield f"\n{len(individuals)} individuals, {num_pictures} pictures of each, {steps} steps of DPM-Solver++."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specification", type=Path)
    parser.add_argument("-o", "--output-dir", type=Path, required=True)
    parser.add_argument("--individuals", type=int, default=10)
    parser.add_argument("--lock-until", type=float, nargs="+", default=[0.8, 0.6, 0.4, 0.2, 0.0])
    parser.add_argument("--steps", type=int, default=15, help="of the sampler")
    parser.add_argument("--row", default="infusion", help="of the specification")
    given = parser.parse_args()
    torch.set_num_threads(1)
    no_loading_bars()
    spec = drawing_plan(load_specification(given.specification), given.steps)
    shop = Workshop.of(spec, given.output_dir)
    row = spec.row(given.row)
    if row is None:
        parser.error(f'there is no row "{given.row}": {", ".join(row.name for row in spec.rows)}')
    path = given.output_dir / "lock_until.json"
    facts = {
        "ground": asdict(shop.ground),
        "plan": asdict(spec.plan),
        "lock_until": given.lock_until,
        "method": [asdict(row.method), row.training.identity()],
    }
    facts = json.loads(json.dumps(facts))  # as a file gives them back
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = before["individuals"] if {name: before.get(name) for name in facts} == facts else []
    for individual in spec.others(FIRST_INDIVIDUAL, given.individuals)[len(found) :]:
        found.append(measured(shop, row, individual, [1.0, *given.lock_until]))
        with whole_file(path) as file:
            file.write_text(json.dumps(facts | {"individuals": found}, indent=1) + "\n", encoding="utf-8")
        print(individual.seed, "is done", flush=True)
    text = "\n".join(table(found[: given.individuals], len(spec.plan.prompt_of), given.steps)) + "\n"
    with whole_file(path.with_suffix(".md")) as file:
        file.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
