"""Results of the benchmark and of the ladder -> do the metrics answer rightly where the answer is known?

    infusion benchmark benchmarks/toybox/ladder.toml -o benchmarks/toybox/ladder
    python benchmarks/toybox/validity.py benchmarks/toybox/full benchmarks/toybox/ladder

The ladder trains the same recipe ever longer. Whether two draws of the base are told apart is looked at with fresh
pictures of every class, each with seeds of its own: those of the benchmark begin with the same noises for all classes,
so that ten classes would be one draw seen ten times. Writes `validity.json` into the benchmark's folder, where the
report finds it. A check that fails is written as failed.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kstest, spearmanr

from infusion.base import load_base
from infusion.benchmark.run import evaluators_of
from infusion.benchmark.specification import load_specification
from infusion.evaluation.reference import Reference
from infusion.evaluation.validity import null_ranks
from infusion.files import whole_file
from infusion.intervals import Figure, mean
from infusion.terminal import no_loading_bars

_FLOOR = 1e-9
_NUM_PROMPTS, _SEEDS_APART = 10, 10_000
_OVERFITTING = ("lfd_s4", "w2_exact", "w2_background")
Cells = list[dict[str, Any]]


def read(folder: Path) -> dict[str, Cells]:
    """Cells by row, in the order of individuals; those that failed are left out."""
    cells: dict[str, Cells] = {}
    for path in sorted((folder / "cells").glob("*/*.json")):
        cell = json.loads(path.read_text())
        if cell["measures"]:
            cells.setdefault(cell["row"], []).append(cell)
    return cells


def check(name: str, sentence: str, figure: Figure, passed: Callable[[Figure], bool]) -> dict[str, Any]:
    return {"name": name, "sentence": sentence, "passed": bool(passed(figure)), **figure._asdict()}


def base_against_base(cells: dict[str, Cells], independent: list[dict[str, float]]) -> Iterable[dict[str, Any]]:
    """Validity test 1: nothing is measured where nothing was done."""
    largest = max(cell["measures"][f"lfd_{probe}"] for cell in cells["base"] for probe in ("s1", "s2", "s3", "s4"))
    num = len(cells["base"])
    yield check(
        "base against base: divergence",
        f"The largest divergence of the base from itself, computed in batches of another size; at most {_FLOOR}.",
        Figure(largest, largest, largest, num),
        lambda figure: figure.value <= _FLOOR,
    )
    for distance in independent[0]:
        ranks = [found[distance] for found in independent if math.isfinite(found[distance])]
        p_value = float(kstest(ranks, "uniform").pvalue)
        yield check(
            f"base against base: {distance}",
            "Where the distance between two draws of the base lies among random splits of their seeds, mean over "
            "classes with seeds of their own; 0.5 is expected. Passed if the ranks look uniform (Kolmogorov-Smirnov, "
            f"p = {p_value:.2g}, at least 0.01).",
            mean(ranks),
            lambda figure, p_value=p_value: p_value >= 0.01,
        )


def not_measured(name: str, why: str) -> dict[str, Any]:
    return {
        "name": name,
        "sentence": f"Not measured: {why}.",
        "passed": False,
        "value": None,
        "low": None,
        "high": None,
        "num": 0,
    }


def independent_ranks(folder: Path) -> list[dict[str, float]]:
    """For every class, `null_ranks` of two draws that share no seed with those of another class."""
    spec = load_specification(folder / "benchmark.toml")
    base, evaluators = load_base(spec.base), evaluators_of(spec.judges)
    plan = replace(spec.plan, prompts=spec.plan.prompts[:_NUM_PROMPTS])
    found = []
    for number, noun in enumerate(dict.fromkeys(one.class_noun for one in spec.individuals), start=1):
        kept = folder / "work" / f"null-{noun.replace(' ', '-')}"
        reference = Reference(
            base, noun, plan, evaluators, folder=kept, first_seed=_SEEDS_APART * number, shared_noise=True
        )
        found.append(null_ranks(reference))
        print(f"two draws of {noun}: {found[-1]}", flush=True)
    return found


def with_and_without_prior(cells: dict[str, Cells]) -> Iterable[dict[str, Any]]:
    """Validity test 2: DreamBooth without prior preservation breaks more of its class than with it."""
    without, with_prior = (
        {cell["individual"]: cell["measures"] for cell in cells.get(row, [])}
        for row in ("dreambooth", "dreambooth-prior")
    )
    both = sorted(without.keys() & with_prior.keys())
    if len(both) < 2:
        yield not_measured(
            "DreamBooth without and with prior preservation", "there are no two individuals with both rows"
        )
        return
    for measure, sign in (("lfd_s2", 1), ("lfd_s3", 1), ("class_diversity", -1), ("class_leak", 1)):
        figure = mean([sign * (without[one][measure] - with_prior[one][measure]) for one in both])
        yield check(
            f"DreamBooth without and with prior preservation: {measure}",
            f"How much more is broken without it, by {measure}; the interval over individuals must lie above 0.",
            figure,
            lambda figure: figure.low > 0,
        )


def ever_longer(ladder: dict[str, Cells]) -> Iterable[dict[str, Any]]:
    """Validity test 3: the same recipe trained ever longer is ever further from the base."""
    rungs = sorted(
        (cells[0]["settings"]["max_train_steps"], row) for row, cells in ladder.items() if row not in ("base", "null")
    )
    for measure in _OVERFITTING:
        by_individual: dict[int, list[float]] = {}
        for _, row in rungs:
            for cell in ladder[row]:
                by_individual.setdefault(cell["individual"], []).append(cell["measures"][measure])
        whole = [values for values in by_individual.values() if len(values) == len(rungs)]
        if len(whole) < 2 or len(rungs) < 3:
            yield not_measured(f"ever longer training: {measure}", "the ladder has fewer than 3 rungs or 2 individuals")
            continue
        steps = [step for step, _ in rungs]
        figure = mean([float(spearmanr(steps, values).statistic) for values in whole])
        yield check(
            f"ever longer training: {measure}",
            f"Rank correlation of training steps ({', '.join(map(str, steps))}) and {measure}, mean over individuals; "
            "the interval must lie above 0.5.",
            figure,
            lambda figure: figure.low > 0.5,
        )


def copies(cells: dict[str, Cells]) -> Iterable[dict[str, Any]]:
    """Validity test 3, second half: a model that repeats its training pictures lights up the collapse ratio."""
    for kind, words, good in (
        (
            "collapse_of_copies",
            "The collapse ratio of a model that nearly repeats its training pictures; below 0.5.",
            below,
        ),
        (
            "collapse_of_real",
            "The collapse ratio of a model that draws other real pictures of the concept; above 0.5.",
            above,
        ),
        ("copied_of_copies", "The share of copies found among near copies of the training pictures; above 0.5.", above),
        ("copied_of_real", "The share of copies found among other real pictures of the concept; below 0.5.", below),
    ):
        yield check(f"copies: {kind}", words, mean([cell["known_answers"][kind] for cell in cells["base"]]), good)


def below(figure: Figure) -> bool:
    return figure.high < 0.5


def above(figure: Figure) -> bool:
    return figure.low > 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("ladder", type=Path)
    arguments = parser.parse_args()
    no_loading_bars()
    torch.set_num_threads(1)
    cells, ladder = read(arguments.benchmark), read(arguments.ladder)
    independent = independent_ranks(arguments.benchmark)
    checks = [
        *base_against_base(cells, independent),
        *with_and_without_prior(cells),
        *ever_longer(ladder),
        *copies(cells),
    ]
    for one in checks:
        state = "passed" if one["passed"] else "FAILED"
        figure = f"{one['value']:.4g} ({one['low']:.4g} to {one['high']:.4g}, n = {one['num']})" if one["num"] else ""
        print(f"{state}  {one['name']}: {figure or one['sentence']}")
    with whole_file(arguments.benchmark / "validity.json") as temporary:
        temporary.write_text(json.dumps({"checks": checks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
