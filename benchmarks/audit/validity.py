"""The untouched base, audited against itself with other seeds, 40 times -> does any axis cry wolf?

    python benchmarks/audit/validity.py -o benchmarks/audit/validity.json

Ten classes, four repeats each: the base's pictures of the plain class noun, of seeds of their own, stand where those of
a customized model would. Real pictures are of an individual that the base has never seen. A repeat is silent where no
answer says that something was learnt, forgotten, leaked, moved, changed beyond the subject or was copied; predictions
are the base's own, so that class and world test little but rounding. The repeats of a class share the base's pictures
that they are held against, and no seed with them. Repeats are kept one by one.
"""

import argparse
import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from infusion.auditing.answers import answers
from infusion.auditing.result import AuditResult
from infusion.base import load_base
from infusion.benchmark.individuals import Individual, concept_of
from infusion.benchmark.run import evaluators_of
from infusion.evaluation.drawing import decoded, draw, to_tensor
from infusion.evaluation.evaluate import ConceptImages, Drawn, evaluate
from infusion.evaluation.plans import plan_for
from infusion.evaluation.reference import Reference
from infusion.files import whole_file
from infusion.intervals import share
from infusion.terminal import no_loading_bars
from infusion.toybox.scene import CLASSES

SILENT = {
    "Was it learnt?": ("Inconclusive", "No"),
    "Are prompts followed?": ("Yes", "Inconclusive"),
    "Did it leak into its class?": ("No",),
    "Did the rest of the world move?": ("No",),
    "Is it confined to the subject?": ("As far as can be seen",),
    "Were training pictures copied?": ("None seen",),
}
FIRST_INDIVIDUAL = 42_000
SEEDS_APART = 5_000


def repeat(number: int, folder: Path) -> dict[str, Any]:
    """One audit of the base by itself."""
    no_loading_bars()
    class_noun = list(CLASSES)[number % 10]
    base = load_base()
    base.freeze()
    plan = plan_for(class_noun, toybox=True, quick=False)
    way = hashlib.sha256(f"{base.digest()} {plan}".encode()).hexdigest()[:16]
    reference = Reference(base, class_noun, plan, evaluators_of("b"), folder=folder / f"{class_noun}-{way}")
    first = SEEDS_APART * (number + 1)
    seeds = reference.seeds(first, plan.drawing.num_seeds, len(plan.prompts))
    of_class = range(first + 1000, first + 1000 + plan.drawing.num_class_pictures)
    drawn = Drawn(
        decoded(base, draw(base, plan, reference.texts(class_noun), seeds)),
        decoded(base, draw(base, plan, [reference.class_text], of_class)),
    )
    training = list(concept_of(Individual(FIRST_INDIVIDUAL + number, class_noun)).images)
    real = ConceptImages(to_tensor(training))
    found = AuditResult(
        name=f"base {number}",
        about={"concept_name": "base", "class_noun": class_noun, "words": class_noun, "method": "none"},
        file_name="",
        file_bytes=0,
        num_parameters=0,
        base=base.id,
        plan=plan,
        own=evaluate(reference, None, real, drawn),
        untouched=evaluate(reference, None, real),
        nulls=reference.nulls,
        recalled=None,
        training=training,
        evaluators={"clip": "toybox-b", "encoder": "toybox-b", "judges": "b"},
        seconds=0.0,
    )
    told = {answer.question: answer.word for answer in answers(found)}
    return {
        "class_noun": class_noun,
        "first_seed": first,
        "answers": told,
        "alarms": [question for question, word in told.items() if word not in SILENT[question]],
        "measures": {name: figure._asdict() for name, figure in found.own.measures.items()},
        "nulls": found.nulls,
        "chances": found.own.chances,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--work-dir", type=Path, default=Path("audit-validity-work"))
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    told = json.loads(arguments.output.read_text())["repeats"] if arguments.output.exists() else []
    missing = range(len(told), arguments.repeats)
    with ProcessPoolExecutor(arguments.processes, get_context("spawn"), partial(torch.set_num_threads, 1)) as pool:
        for number, found in zip(missing, pool.map(partial(repeat, folder=arguments.work_dir), missing), strict=True):
            told.append(found)
            print(number, found["class_noun"], found["answers"], flush=True)
            silent = share([not one["alarms"] for one in told])
            with whole_file(arguments.output) as temporary:
                temporary.write_text(json.dumps({"silent": silent._asdict(), "repeats": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
