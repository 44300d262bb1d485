"""A TOML file -> what a benchmark is to make: methods with settings, individuals, prompts."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from infusion.benchmark.individuals import RARE_TOKENS, Individual
from infusion.errors import UserError, all_at_once, nearest, noting
from infusion.evaluation.plans import Drawing, Plan, Wanted
from infusion.methods import METHODS
from infusion.methods.method import Method
from infusion.metrics.catalogue import BASE, NULL
from infusion.metrics.facts import check_wanted
from infusion.settings import from_mapping, parse
from infusion.toybox.scene import CLASSES, FIRST_RESERVED_CONCEPT
from infusion.training.settings import TrainingSettings


@dataclass(frozen=True)
class Row:
    """A method with its settings, under the name that tables call it by."""

    name: str
    method: Method
    training: TrainingSettings

    def method_for(self, individual: Individual) -> Method:
        """The method, with the individual's own rare token where it uses one."""
        if not hasattr(self.method, "rare_token"):
            return self.method
        return replace(self.method, rare_token=individual.rare_token)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Specification:
    """What a TOML file says of a benchmark. siblings: for each class noun, other nouns that S2 asks about."""

    title: str
    base: str
    judges: str
    individuals: tuple[Individual, ...]
    pairs: tuple[tuple[Individual, Individual], ...]
    pair_prompts: tuple[str, ...]
    rows: tuple[Row, ...]
    plan: Plan
    siblings: Mapping[str, tuple[str, ...]]

    def row(self, name: str) -> Row | None:
        """The row called so; None for the base's rows."""
        return next((row for row in self.rows if row.name == name), None)

    def others(self, first_seed: int, num: int) -> list[Individual]:
        """Individuals beside those of the benchmark, of its classes in turn."""
        classes = list(dict.fromkeys(one.class_noun for one in self.individuals))
        return [Individual(first_seed + n, classes[n % len(classes)]) for n in range(num)]

    def plan_for(self, class_noun: str) -> Plan:
        """The plan, with the prompts about other classes than this one."""
        unrelated = tuple(text for text in self.plan.unrelated if not re.search(rf"\b{class_noun}\b", text))
        siblings = tuple(text.format(noun) for noun in self.siblings[class_noun] for text in self.plan.siblings)
        return replace(self.plan, unrelated=unrelated, siblings=siblings)


def load_specification(path: str | Path) -> Specification:
    """Read a benchmark's TOML file.

    Raises:
        UserError: it cannot be read; keys, classes, methods or settings in it are unknown; all mistakes at once.
    """
    try:
        told = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the benchmark {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not a TOML file: {error}.") from error
    mistakes = _mistakes_of_form(told)
    if mistakes:
        raise all_at_once(mistakes, str(path))
    rows, prompts, drawing = [], [], Drawing()
    for name, settings in told["rows"].items():
        with noting(mistakes, f"rows.{name}: "):
            rows.append(_row(name, settings))
    classes, probes = told["individuals"]["classes"], told["probes"]
    for noun in classes:
        if noun not in CLASSES:
            mistakes.append(f'The toybox has no class "{noun}".{nearest(noun, CLASSES)}')
    for one in told["prompts"]:
        with noting(mistakes, "prompts: "):
            prompts.append(_wanted(one, classes))
    with noting(mistakes, "drawing: "):
        drawing = from_mapping(Drawing, told["drawing"])
    if len(classes) <= probes["num_siblings"]:
        mistakes.append(
            "individuals.classes needs more classes than probes.num_siblings: siblings come from among them."
        )
    if len(prompts) < 2:
        mistakes.append("prompts: intervals are over prompts; give two or more.")
    if mistakes:
        raise all_at_once(mistakes, str(path))
    individuals = _individuals(**told["individuals"])
    pairs = told.get("pairs", {"num": 0, "prompts": []})
    return Specification(
        title=told["title"],
        base=told["base"],
        judges=told["judges"],
        individuals=individuals,
        pairs=_pairs(individuals, pairs["num"]),
        pair_prompts=tuple(pairs["prompts"]),
        rows=tuple(rows),
        plan=Plan(tuple(prompts), tuple(probes["unrelated"]), tuple(probes["siblings"]), drawing),
        siblings=_siblings(classes, probes["num_siblings"]),
    )


_FORM: dict[str, Any] = {
    "title": str,
    "base": str,
    "judges": str,
    "individuals": {"classes": list, "each": int, "first_seed": int},
    "prompts": list,
    "drawing": dict,
    "probes": {"unrelated": list, "siblings": list, "num_siblings": int},
    "pairs": {"num": int, "prompts": list},
    "rows": dict,
}
_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}


def _mistakes_of_form(told: Mapping[str, Any]) -> list[str]:
    """Keys that are unknown, missing, or hold another kind of thing; only `pairs` may be missing."""
    mistakes = []
    found = [("", told, _FORM)]
    found += [(f"{key}.", told[key], kind) for key, kind in _FORM.items() if isinstance(kind, dict) and key in told]
    for prefix, table, kinds in found:
        if not isinstance(table, dict):
            mistakes.append(f'"{prefix.rstrip(".")}" must be a table.')
            continue
        for key in table.keys() - kinds.keys():
            mistakes.append(f'Unknown key "{prefix}{key}".{nearest(key, kinds)} There are: {", ".join(kinds)}.')
        for key, kind in kinds.items():
            if key not in table and (prefix, key) != ("", "pairs"):
                mistakes.append(f'"{prefix}{key}" is missing.')
            elif (
                key in table and not isinstance(kind, dict) and (not isinstance(table[key], kind) or table[key] is True)
            ):
                mistakes.append(f'"{prefix}{key}" must be {_NAMES[kind]}.')
    return mistakes


def _wanted(one: Any, classes: Sequence[str]) -> Wanted:
    if not isinstance(one, dict) or "{}" not in str(one.get("text")):
        raise UserError(
            f'{one} is not a table with a text in which {{}} stands for the concept, such as "a {{}} on the beach".'
        )
    facts = {key: value for key, value in one.items() if key != "text"}
    for noun in classes:
        check_wanted({"class": noun, **facts})
    return Wanted(one["text"], facts)


def _row(name: str, settings: Mapping[str, Any]) -> Row:
    if name in (BASE, NULL):
        raise UserError(f'"{name}" is a row that every benchmark has; choose another name.')
    given = dict(settings)
    called = given.pop("method", None)
    if called not in METHODS:
        raise UserError(f'method = "{called}" is none of: {", ".join(METHODS)}.{nearest(str(called), METHODS)}')
    method, training = parse(given, METHODS[called], TrainingSettings)
    return Row(name, method, training)


def _individuals(classes: Sequence[str], each: int, first_seed: int) -> tuple[Individual, ...]:
    """`each` individuals of every class, the first of all classes before the second: a part of them is a fair part."""
    last = first_seed + each * len(classes)
    if last > FIRST_RESERVED_CONCEPT:
        raise UserError(
            f"Concept seeds from {FIRST_RESERVED_CONCEPT:,} on are kept for others; this would use {last:,}."
        )
    return tuple(
        Individual(first_seed + turn * len(classes) + n, noun, RARE_TOKENS[turn % len(RARE_TOKENS)])
        for turn in range(each)
        for n, noun in enumerate(classes)
    )


def _siblings(classes: Sequence[str], num: int) -> dict[str, tuple[str, ...]]:
    """For each class the next ones of the benchmark's own list, round and round: neighbours should be alike."""
    return {
        noun: tuple(classes[(at + step) % len(classes)] for step in range(1, num + 1))
        for at, noun in enumerate(classes)
    }


def _pairs(individuals: Sequence[Individual], num: int) -> tuple[tuple[Individual, Individual], ...]:
    """`num` pairs of one class and `num` of two."""
    pairs = list(combinations(individuals, 2))
    same = [pair for pair in pairs if pair[0].class_noun == pair[1].class_noun]
    other = [(individuals[n], individuals[(n + 1) % len(individuals)]) for n in range(min(num, len(individuals)))]
    return tuple(same[:num] + [pair for pair in other if pair[0].class_noun != pair[1].class_noun])
