"""Every method, trained twice as long as in the benchmark -> is the step that `--stop auto` keeps better than others?

    python benchmarks/toybox/stop_rule.py benchmarks/toybox/full.toml -o benchmarks/toybox/full

The rule watches with the toybox's encoders a; what it keeps is judged by the encoders and judges b, on other prompts
and other seeds, beside the last step and the step of the lowest training loss. The score is the harmonic mean of
identity and facts. Individuals are not those of the benchmark. Results are kept one by one.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infusion.base import load_base
from infusion.benchmark import Individual, Row, Workshop, concept_of, load_specification, real_pictures, witnesses_of
from infusion.encoders import load_clip, load_image_encoder
from infusion.evaluation import draw, learnt, pictures, prompts_kept
from infusion.files import whole_file
from infusion.intervals import mean
from infusion.stopping import SelfCheck, choose
from infusion.terminal import no_loading_bars
from infusion.training import train

FIRST_INDIVIDUAL = 31_000
EVERY = 25
LONGER = 2


def judged(shop: Workshop, adapter: Any, individual: Individual) -> dict[str, float]:
    """Identity, facts and their harmonic mean on held-out prompts and seeds, by the judges b."""
    reference, real = shop.reference(individual.class_noun), real_pictures(individual)
    name = f"<{adapter.concept_name}>"
    with torch.no_grad():
        images = pictures(
            shop.base,
            draw(shop.base, reference.plan, reference.texts(name), range(reference.plan.drawing.num_seeds), [adapter]),
        )
    facts = prompts_kept(reference, images)[0]["facts"].value
    identity = learnt(reference, real, images, reference.class_images)[0]["identity"].value
    shares = max(0.0, min(1.0, identity)), max(0.0, facts)
    return {"identity": identity, "facts": facts, "score": 2 * shares[0] * shares[1] / max(sum(shares), 1e-9)}


def followed(shop: Workshop, row: Row, individual: Individual) -> dict[str, Any]:
    """One training with its checks, and the judgement of the last step, the rule's and that of the lowest loss."""
    concept = concept_of(individual)
    rule = SelfCheck(shop.base, concept, load_clip("toybox-a"), load_image_encoder("toybox-a"))
    method = replace(row.method, max_train_steps=LONGER * row.method.max_train_steps)
    adapter = method.adapter(shop.base, concept)
    prior = (
        shop.reference(individual.class_noun).prior_latents(method.num_class_images)
        if method.prior_preservation_weight
        else None
    )
    checks, states, losses = [], {}, []
    for now in train(shop.base, adapter, concept, row.training, class_latents=prior):
        losses.append(now.loss)
        if now.step % EVERY == 0:
            checks.append(rule(adapter, now.step, sum(losses[-EVERY:]) / EVERY))
            states[now.step] = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    steps = {
        "last": checks[-1].step,
        "auto": choose(checks).step,
        "lowest_loss": min(checks, key=lambda check: check.loss).step,
    }
    told = {}
    for step in sorted(set(steps.values())):
        adapter.load_state_dict(states[step])
        told[step] = judged(shop, adapter, individual)
    return {
        "row": row.name,
        "individual": individual.seed,
        "class_noun": individual.class_noun,
        "steps": steps,
        "judged": {name: told[step] for name, step in steps.items()},
        "checks": [vars(check) for check in checks],
    }


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Differences of the judged score, the rule's less the other's, by row and over all trainings."""
    checks = []
    rows = list(dict.fromkeys(result["row"] for result in results))
    for other, words in (("last", "the last step"), ("lowest_loss", "the step of the lowest training loss")):
        for row in [*rows, None]:
            some = [result for result in results if row in (None, result["row"])]
            gains = [one["judged"]["auto"]["score"] - one["judged"][other]["score"] for one in some]
            figure = mean(gains)
            checks.append(
                {
                    "name": f"{row or 'all methods'}: auto against {words}",
                    "sentence": "Judged score (harmonic mean of identity and facts, judges b, held-out prompts and "
                    f"seeds) at the step the rule keeps, less that at {words}; interval over trainings.",
                    "passed": figure.value > 0 if row else figure.low > 0,
                    **figure._asdict(),
                }
            )
    return {"checks": checks, "every": EVERY, "times_longer": LONGER}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specification", type=Path)
    parser.add_argument("-o", "--output-dir", type=Path, required=True)
    parser.add_argument("--each", type=int, default=4, help="individuals")
    parser.add_argument("--part", default="1/1", help="2/2: the second of two processes that share the work")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    no_loading_bars()
    spec = load_specification(arguments.specification)
    plan = replace(spec.plan, drawing=replace(spec.plan.drawing, num_seeds=2))
    spec = replace(spec, plan=plan)
    shop = Workshop(spec, arguments.output_dir, load_base(spec.base), witnesses_of(spec.judges))
    shop.base.freeze()
    classes = list(dict.fromkeys(one.class_noun for one in spec.individuals))
    individuals = [Individual(FIRST_INDIVIDUAL + n, classes[n % len(classes)]) for n in range(arguments.each)]
    part, parts = (int(number) for number in arguments.part.split("/"))
    work = [(row, one) for one in individuals for row in spec.rows]
    for row, individual in work[part - 1 :: parts]:
        path = arguments.output_dir / "stop_rule" / row.name / f"{individual.seed}.json"
        if not path.exists():
            told = followed(shop, row, individual)
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(told, indent=1) + "\n")
            print(
                path, told["steps"], {name: round(one["score"], 3) for name, one in told["judged"].items()}, flush=True
            )
    results = [json.loads(path.read_text()) for path in sorted(arguments.output_dir.glob("stop_rule/*/*.json"))]
    with whole_file(arguments.output_dir / "stop_rule.json") as temporary:
        temporary.write_text(json.dumps(summary(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
