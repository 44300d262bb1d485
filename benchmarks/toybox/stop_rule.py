"""Every method, trained longer than in the benchmark -> is the step that `--stop auto` keeps better than others?

    python benchmarks/toybox/stop_rule.py benchmarks/toybox/full.toml -o benchmarks/toybox/full
    python benchmarks/toybox/stop_rule.py benchmarks/toybox/full.toml -o benchmarks/audit --name run --rows lora \\
        --individuals 20 --first-individual 43000 --times-longer 4 --every 100

The second is a run of six checkpoints as people have them, of which `infusion audit` chooses among all.

The rule watches with the toybox's encoders a, and ends a training as the command line does. Every step it looks at is
also judged by the encoders and judges b, on prompts that the rule does not draw and with other seeds; what the rule
keeps is held against the last step and the step of the lowest training loss. The score is the harmonic mean of identity
and facts. Individuals are not those of the benchmark. Results are kept one by one. Two processes share the work with
--part 1/2 and --part 2/2.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from infusion.benchmark.individuals import Individual, concept_of, real_images
from infusion.benchmark.results import FEWEST
from infusion.benchmark.run import Workshop
from infusion.benchmark.specification import Row, Specification, load_specification
from infusion.evaluation.evaluate import drawn_with, gather
from infusion.files import whole_file
from infusion.intervals import mean
from infusion.methods.adapter import Adapter
from infusion.metrics.catalogue import METRICS
from infusion.metrics.encoders import load_clip, load_image_encoder
from infusion.metrics.metric import measure
from infusion.terminal import no_loading_bars
from infusion.training.loop import train
from infusion.training.stopping import EVERY, PATIENCE, PROMPTS, Check, Kept, SelfCheck, choose

FIRST_INDIVIDUAL = 31_000
RULES = {"auto": "the step that --stop auto keeps", "pick": "the best of all checkpoints, as the audit picks"}
OTHERS = {
    "last": "the last step",
    "lowest_loss": "the step of the lowest training loss",
    "third": "the step at a third of the training, whatever is seen there",
}


def judging_plan(spec: Specification) -> Specification:
    """The benchmark's prompts, without those that the rule draws, two seeds each."""
    prompts = tuple(prompt for prompt in spec.plan.prompts if prompt.text not in PROMPTS)
    drawing = replace(spec.plan.drawing, num_seeds=2, num_class_pictures=3)
    return replace(spec, plan=replace(spec.plan, prompts=prompts, drawing=drawing))


def judged(shop: Workshop, adapter: Adapter, individual: Individual) -> dict[str, float]:
    """Identity, facts and their harmonic mean, by the judges b."""
    reference = shop.reference(individual.class_noun)
    drawn = drawn_with(reference, adapter)
    evidence = gather(reference, real_images(individual, reference.plan), drawn)
    found = measure(evidence, {name: METRICS[name] for name in ("facts", "identity")})
    facts, identity = found["facts"].value, found["identity"].value
    shares = max(0.0, min(1.0, identity)), facts
    return {"identity": identity, "facts": facts, "score": 2 * shares[0] * shares[1] / max(sum(shares), 1e-9)}


def kept_by_the_rule(checks: Sequence[Check]) -> Check:
    """What `--stop auto` keeps: it ends when the checks after the best have brought nothing better."""
    kept = Kept()
    for check in checks:
        kept.add(check, {})
        if kept.checks_since_best >= PATIENCE:
            break
    return kept.best


def followed(shop: Workshop, row: Row, individual: Individual, longer: int, every: int) -> dict[str, Any]:
    """One training with its checks, and the judgement at each."""
    concept = concept_of(individual)
    rule = SelfCheck(shop.base, concept, load_clip("toybox-a"), load_image_encoder("toybox-a"))
    method = replace(row.method, max_train_steps=longer * row.method.max_train_steps)
    adapter = method.adapter(shop.base, concept)
    prior = None
    if method.prior_preservation_weight:
        prior = shop.reference(individual.class_noun).prior_latents(method.num_class_images)
    checks, told, losses = [], {}, []
    for now in train(shop.base, adapter, concept, row.training, class_latents=prior):
        losses.append(now.loss)
        if now.step % every == 0:
            checks.append(rule(adapter, now.step, sum(losses[-every:]) / every))
            told[now.step] = judged(shop, adapter, individual)
    return {
        "row": row.name,
        "individual": individual.seed,
        "class_noun": individual.class_noun,
        "checks": [asdict(check) for check in checks],
        "judged": told,
    }


def kept_steps(checks: Sequence[Check]) -> dict[str, int]:
    """The step that every rule keeps."""
    return {
        "auto": kept_by_the_rule(checks).step,
        "pick": choose(checks, [check.step for check in checks]).step,
        "last": checks[-1].step,
        "third": min(checks, key=lambda check: abs(check.step - checks[-1].step / 3)).step,
        "lowest_loss": min(checks, key=lambda check: check.loss).step,
    }


def scores(result: dict[str, Any]) -> dict[str, float]:
    """The judged score of what every rule keeps of one training."""
    steps = kept_steps([Check(**check) for check in result["checks"]])
    return {rule: result["judged"][str(step)]["score"] for rule, step in steps.items()}


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Differences of the judged score, the rule's less the other's; intervals over individuals.

    All methods together are averaged for each individual first: trainings on one individual are not independent.
    """
    rows = sorted({result["row"] for result in results})
    checks = []
    for rule, kept in RULES.items():
        for other, words in OTHERS.items():
            gains = {(one["row"], one["individual"]): scores(one)[rule] - scores(one)[other] for one in results}
            for row in (None, *rows):
                figure = mean(_by_individual(gains, row))
                checks.append(
                    {
                        "name": f"{row or 'all methods'}: {rule} against {words}",
                        "sentence": f"Judged score (harmonic mean of identity and facts) of {kept}, less that of "
                        f"{words}; interval over individuals.",
                        "passed": None if row or figure.num < FEWEST else figure.low > 0,
                        **figure._asdict(),
                    }
                )
    return {"checks": checks, "patience": PATIENCE}


def _by_individual(gains: Mapping[tuple[str, int], float], row: str | None) -> list[float]:
    """Gains of one row, or the means over all rows, individual by individual."""
    individuals = sorted({individual for _, individual in gains})
    own = [[gain for (name, whose), gain in gains.items() if whose == i and row in (None, name)] for i in individuals]
    return [sum(some) / len(some) for some in own if some]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specification", type=Path)
    parser.add_argument("-o", "--output-dir", type=Path, required=True)
    parser.add_argument("--name", default="stop_rule", help="of the results")
    parser.add_argument("--rows", nargs="+", help="some of the specification's")
    parser.add_argument("--individuals", type=int, default=5)
    parser.add_argument("--first-individual", type=int, default=FIRST_INDIVIDUAL)
    parser.add_argument("--times-longer", type=int, default=2)
    parser.add_argument("--every", type=int, default=EVERY, help="steps between checks")
    parser.add_argument("--part", default="1/1", help="2/2: the second of two processes that share the work")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    no_loading_bars()
    spec = judging_plan(load_specification(arguments.specification))
    shop = Workshop.of(spec, arguments.output_dir)
    individuals = spec.others(arguments.first_individual, arguments.individuals)
    longer, every = arguments.times_longer, arguments.every
    rows = [row for row in spec.rows if arguments.rows is None or row.name in arguments.rows]
    part, parts = (int(number) for number in arguments.part.split("/"))
    wanted = {}
    for row, individual in [(row, one) for one in individuals for row in rows]:
        facts: list[Any] = [longer, every, PROMPTS, asdict(shop.ground), asdict(spec.plan), asdict(individual)]
        facts += [asdict(row.method), row.training.identity()]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        wanted[arguments.output_dir / arguments.name / row.name / f"{individual.seed}-{key}.json"] = row, individual
    for path, (row, individual) in list(wanted.items())[part - 1 :: parts]:
        if not path.exists():
            told = followed(shop, row, individual, longer, every)
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(told, indent=1) + "\n")
            print(row.name, individual.seed, scores(json.loads(path.read_text())), flush=True)
    results = [json.loads(path.read_text()) for path in wanted if path.exists()]
    with whole_file(arguments.output_dir / f"{arguments.name}.json") as temporary:
        temporary.write_text(json.dumps(summary(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
