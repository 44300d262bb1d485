"""Individuals, learnt with Infusion -> what is lost when the lock is released before the last step of the sampler.

    OMP_NUM_THREADS=1 python benchmarks/toybox/lock_until.py benchmarks/toybox/full.toml -o benchmarks/toybox/full

Every individual is learnt as in the benchmark, then drawn with each `--lock-until`, from the same noise. Told are how
far pictures are from the exact ones (mean difference of pixels, in % of their range) and what the judges b say less
what they say of the exact ones. Differences are taken within an individual; intervals (Student's, 95%) are over
individuals, who are not those of the benchmark. Results are kept one by one.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infusion.base import load_base
from infusion.benchmark import (
    Ground,
    Individual,
    Specification,
    Workshop,
    concept_of,
    load_specification,
    real_pictures,
    witnesses_of,
)
from infusion.evaluation import Drawn, learnt, pictures, prompts_kept
from infusion.files import whole_file
from infusion.intervals import Figure, mean
from infusion.methods import Adapter
from infusion.pipeline import sample_prompts
from infusion.sampling import few_step_scheduler
from infusion.terminal import no_loading_bars
from infusion.training import train

FIRST_INDIVIDUAL = 45_200
BASE = "the base"  # beside the shares: what pictures without any concept are off
_ROW = "infusion"


def drawing_plan(spec: Specification, steps: int) -> Specification:
    """The benchmark's prompts, one picture each, in enough steps for a share of them to mean something."""
    drawing = replace(spec.plan.drawing, num_seeds=1, num_class_pictures=3, num_inference_steps=steps)
    return replace(spec, plan=replace(spec.plan, drawing=drawing))


def drawn(shop: Workshop, class_noun: str, adapters: Sequence[Adapter], lock_until: float = 1.0) -> Tensor:
    """Pictures [N, 3, H, W] of the plan's prompts."""
    reference, plan = shop.reference(class_noun), shop.spec.plan
    name = f"<{adapters[0].concept_name}>" if adapters else class_noun
    latents = sample_prompts(
        shop.base,
        reference.texts(name),
        adapters,
        reference.own_seeds,
        num_inference_steps=plan.drawing.num_inference_steps,
        guidance_scale=plan.drawing.guidance_scale,
        batch_size=10,
        scheduler=few_step_scheduler(shop.base),
        lock_until=lock_until,
    )
    return pictures(shop.base, torch.cat(list(latents)))


def measured(shop: Workshop, individual: Individual, shares: Sequence[float]) -> dict[str, Any]:
    """By share, and for the base: the difference to the exact pictures, facts and identity."""
    row = next(row for row in shop.spec.rows if row.name == _ROW)
    concept, noun = concept_of(individual), individual.class_noun
    adapter = row.method.adapter(shop.base, concept)
    for _ in train(shop.base, adapter, concept, row.training):
        pass
    reference = shop.reference(noun)
    real = real_pictures(individual, reference.plan)
    images = {f"{share:g}": drawn(shop, noun, [adapter], share) for share in shares} | {BASE: drawn(shop, noun, [])}
    found = {}
    for name, some in images.items():
        identity, _ = learnt(reference, real, Drawn(some, reference.class_images))
        found[name] = {
            "pixels": (some - images["1"]).abs().mean().item(),
            "facts": prompts_kept(reference, some)[0]["facts"].value,
            "identity": identity["identity"].value,
        }
    return {"individual": individual.seed, "class_noun": noun, "measured": found}


def table(individuals: Sequence[Mapping[str, Any]], num_pictures: int, steps: int) -> Iterator[str]:
    yield "| lock_until | pixels off, % of their range | facts, less those of 1 | identity, less that of 1 |"
    yield "|---|---|---|---|"

    def told(figure: Figure, digits: int) -> str:
        return f"{figure.value:.{digits}f} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"

    for name in individuals[0]["measured"]:
        own, exact = ([one["measured"][which] for one in individuals] for which in (name, "1"))
        pixels = mean([100 * some["pixels"] for some in own])
        facts, identity = (
            mean([a[kind] - b[kind] for a, b in zip(own, exact, strict=True)]) for kind in ("facts", "identity")
        )
        yield f"| {name} | {told(pixels, 2)} | {told(facts, 3)} | {told(identity, 3)} |"
    yield f"\n{len(individuals)} individuals, {num_pictures} pictures of each, {steps} steps of DPM-Solver++."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specification", type=Path)
    parser.add_argument("-o", "--output-dir", type=Path, required=True)
    parser.add_argument("--individuals", type=int, default=10)
    parser.add_argument("--lock-until", type=float, nargs="+", default=[0.8, 0.6, 0.4, 0.2, 0.0])
    parser.add_argument("--steps", type=int, default=15, help="of the sampler")
    given = parser.parse_args()
    torch.set_num_threads(1)
    no_loading_bars()
    spec = drawing_plan(load_specification(given.specification), given.steps)
    base = load_base(spec.base)
    base.freeze()
    ground = Ground.of(spec, base)
    shop = Workshop(spec, given.output_dir, base, witnesses_of(spec.judges), ground)
    classes = list(dict.fromkeys(one.class_noun for one in spec.individuals))
    path = given.output_dir / "lock_until.json"
    facts: dict[str, Any] = {"ground": asdict(ground), "plan": asdict(spec.plan), "lock_until": given.lock_until}
    facts = json.loads(json.dumps(facts))  # as a file gives them back
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = before["individuals"] if {name: before.get(name) for name in facts} == facts else []
    for number in range(len(found), given.individuals):
        individual = Individual(FIRST_INDIVIDUAL + number, classes[number % len(classes)])
        found.append(measured(shop, individual, [1.0, *given.lock_until]))
        with whole_file(path) as file:
            file.write_text(json.dumps(facts | {"individuals": found}, indent=1) + "\n", encoding="utf-8")
        print(individual.seed, "is done", flush=True)
    text = "\n".join(table(found[: given.individuals], len(spec.plan.prompt_of), given.steps)) + "\n"
    with whole_file(path.with_suffix(".md")) as file:
        file.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
