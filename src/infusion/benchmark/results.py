"""Results of a benchmark on disk -> figures with intervals over individuals."""

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from infusion import intervals
from infusion.benchmark.cells import Cell, Failure, Pair, finite, or_failure
from infusion.errors import UserError, nearest
from infusion.intervals import Figure
from infusion.metrics.catalogue import BASE, MEASURES, NOT_METHODS, PAIR_MEASURES, REFERENCE, ROUNDING, UNCHANGED
from infusion.metrics.metric import Measure

FEWEST = 5  # individuals: an interval over fewer rests on assumptions that they cannot show, so no verdict does
_SHARES = {measure.name for measure in (*MEASURES, *PAIR_MEASURES) if measure.is_share}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Check:
    """One test that the measures had to pass. passed: None where it is only shown."""

    name: str
    sentence: str
    passed: bool | None
    value: float | None
    low: float | None
    high: float | None
    num: int | None


@dataclass(frozen=True)
class Results:
    """A benchmark's results. rows: as they are to appear; reference: the row that the others are held against."""

    specification: Mapping[str, Any]
    rows: tuple[str, ...]
    reference: str
    cells: Mapping[str, Mapping[int, Cell]]
    pairs: Sequence[Pair]
    failures: Sequence[Failure]
    validity: Sequence[Check]
    stop_rule: Sequence[Check]

    @cached_property
    def individuals(self) -> Mapping[int, str]:
        """Every individual of any row -> its class noun."""
        found = {cell.individual: cell.class_noun for some in self.cells.values() for cell in some.values()}
        return dict(sorted(found.items()))

    @property
    def title(self) -> str:
        return str(self.specification.get("title") or "A benchmark of customization")

    def values(self, row: str, name: str) -> dict[int, float]:
        """A measure of a row -> its value on every individual that has one."""
        found = {cell.individual: cell.measures.get(name) for cell in self.cells[row].values()}
        return {individual: value for individual, value in found.items() if value is not None}

    def figure(self, row: str, name: str) -> Figure | None:
        """Mean over individuals, with its interval; None where nothing was measured."""
        return _measured(name, self.values(row, name).values())

    def null(self, row: str, name: str) -> float | None:
        """What finite samples alone make of a measure: mean over individuals."""
        figure = _mean(_known(cell.nulls.get(name) for cell in self.cells[row].values()))
        return figure and figure.value

    def difference(self, row: str, name: str, reference: str | None = None) -> Figure | None:
        """Row minus reference, over the individuals both have."""
        ours, theirs = self.values(row, name), self.values(reference or self.reference, name)
        return _mean(ours[individual] - theirs[individual] for individual in sorted(ours.keys() & theirs))

    def pair_figure(self, row: str, name: str, same_class: bool) -> Figure | None:
        """Mean over pairs of concepts, with its interval."""
        pairs = [pair for pair in self.pairs if pair.row == row and pair.same_class == same_class]
        return _measured(name, _known(pair.measures.get(name) for pair in pairs))

    def learnt(self, row: str) -> bool:
        """Whether a row's identity is above the base model's beyond chance; True where it was not measured."""
        identity = self.figure(row, "identity")
        return identity is None or (identity.num >= FEWEST and identity.low > 0)

    def is_unchanged(self, row: str, name: str) -> bool:
        """Whether a concept-agnostic measure is the untouched model's on every individual, but for rounding."""
        values = self.values(row, name)
        expected = self.values(BASE, name) if BASE in self.cells else {}
        return name in UNCHANGED and all(
            abs(value - expected.get(i, UNCHANGED[name])) <= ROUNDING for i, value in values.items()
        )

    def best(self, measure: Measure) -> tuple[str | None, tuple[str, ...]]:
        """The row with the best mean, and the rows that are not worse beyond chance.

        Only methods that learnt compete, on enough individuals, and none with a value that its construction gives it:
        for most distances the best is not to learn at all.
        """
        figures = {row: self.figure(row, measure.name) for row in self._competitors(measure)}
        means = {row: figure.value for row, figure in figures.items() if figure and figure.num >= FEWEST}
        if not means:
            return None, ()
        first = (max if measure.better == "higher" else min)(means, key=lambda row: means[row])
        return first, tuple(row for row in means if row != first and not self._is_worse(row, first, measure))

    def _competitors(self, measure: Measure) -> list[str]:
        rows = [row for row in self.rows if row not in NOT_METHODS and measure.better]
        return [row for row in rows if self.learnt(row) and not self.is_unchanged(row, measure.name)]

    def _is_worse(self, row: str, first: str, measure: Measure) -> bool:
        difference = self.difference(row, measure.name, first)
        return difference is None or difference.num < FEWEST or is_clear(difference)


def is_clear(difference: Figure) -> bool:
    """Whether a difference's interval leaves out zero; of a few individuals nothing is clear."""
    return difference.num >= FEWEST and (difference.low > 0 or difference.high < 0)


def _known(values: Iterable[float | None]) -> Iterator[float]:
    return (value for value in values if value is not None)


def _measured(name: str, values: Iterable[float]) -> Figure | None:
    """Mean of a measure's values; the interval of a share lies within 0 and 1."""
    figure = _mean(values)
    return intervals.as_share(figure) if figure and name in _SHARES else figure


def _mean(values: Iterable[float]) -> Figure | None:
    """Mean with its interval over individuals; None of nothing."""
    return _mean_of(tuple(values))


@lru_cache(maxsize=20_000)
def _mean_of(values: tuple[float, ...]) -> Figure | None:
    return intervals.mean(values) if values else None


# ------------------------------------------------------------------------------------------------------ from disk


def load_results(folder: str | Path, reference: str | None = None) -> Results:
    """A folder of results -> what is in it. UserError when it is missing, empty, damaged, or of several benchmarks.

    Args:
        reference: the row that the others are held against; "infusion" where there is one, or else the first.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Give the folder that the benchmark wrote its results to.")
    specification = _read_specification(folder / "benchmark.toml")
    paths = _of_this_benchmark(folder / "cells", specification)
    if not paths:
        raise UserError(
            f"There are no results in {folder} yet: {folder / 'cells'} has none of its rows and individuals. Run the "
            "benchmark first."
        )
    told = [_read(path, partial(or_failure, Cell)) for path in paths]
    told_of_pairs = [
        _read(path, partial(or_failure, Pair)) for path in _of_this_benchmark(folder / "pairs", specification)
    ]
    cells = [cell for cell in told if isinstance(cell, Cell)]
    if not cells:
        raise UserError(f"There are no results in {folder} yet: every training in it failed.")
    _check_one_plan((*told, *told_of_pairs))
    _check_one_benchmark(cells)
    rows = _ordered_rows({cell.row for cell in cells}, specification)
    if reference is not None and reference not in rows:
        raise UserError(
            f'There is no row "{reference}" in {folder}; it has {", ".join(rows)}.{nearest(reference, rows)}'
        )
    return Results(
        specification=specification,
        rows=rows,
        reference=reference or (REFERENCE if REFERENCE in rows else rows[0]),
        cells={row: {cell.individual: cell for cell in _of_row(cells, row)} for row in rows},
        pairs=[pair for pair in told_of_pairs if isinstance(pair, Pair) and pair.row in rows],
        failures=[failure for failure in (*told, *told_of_pairs) if isinstance(failure, Failure)],
        validity=_read_checks(folder / "validity.json"),
        stop_rule=_read_checks(folder / "stop_rule.json"),
    )


def _of_this_benchmark(folder: Path, specification: Mapping[str, Any]) -> list[Path]:
    """The results of the rows and individuals that the specification names: others are left from before it changed."""
    rows, individuals = _named_rows(specification), _named_individuals(specification)
    paths = sorted(folder.glob("*/*.json"))
    of_rows = [path for path in paths if not rows or path.parent.name in (*rows, *NOT_METHODS)]
    return [path for path in of_rows if individuals is None or individuals.issuperset(path.stem.split("-"))]


def _named_rows(specification: Mapping[str, Any]) -> list[str]:
    """The rows of a specification, in its order; none where it does not say."""
    rows = specification.get("rows")
    return list(rows) if isinstance(rows, Mapping) else []


def _named_individuals(specification: Mapping[str, Any]) -> set[str] | None:
    """The seeds of a specification's individuals, as files are named by them; None where it does not say."""
    told = specification.get("individuals")
    if not isinstance(told, Mapping):
        return None
    classes, each, first = (told.get(key) for key in ("classes", "each", "first_seed"))
    if not (isinstance(classes, list) and isinstance(each, int) and isinstance(first, int)):
        return None
    return {str(seed) for seed in range(first, first + each * len(classes))}


def _of_row(cells: Sequence[Cell], row: str) -> list[Cell]:
    return sorted((cell for cell in cells if cell.row == row), key=lambda cell: cell.individual)


def _ordered_rows(found: set[str], specification: Mapping[str, Any]) -> tuple[str, ...]:
    """As the specification names them, then by name, Infusion before the others; the untouched model last."""
    places = {row: place for place, row in enumerate(_named_rows(specification))}

    def place(row: str) -> tuple[int, float, bool, str]:
        last = NOT_METHODS.index(row) + 1 if row in NOT_METHODS else 0
        return last, places.get(row, math.inf), row != REFERENCE, row

    return tuple(sorted(found, key=place))


def _read(path: Path, parse: Callable[[Path, Mapping[str, Any]], _T]) -> _T:
    """A JSON file -> what `parse` makes of it; a UserError that names the file where it cannot."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return parse(path, content)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except json.JSONDecodeError as error:
        reason = f"it is no whole JSON (line {error.lineno})"
        raise UserError(f"{path} is damaged: {reason}. Delete it and run the benchmark again.") from error
    except KeyError as error:
        raise UserError(f"{path} is damaged: it has no {error}. Delete it and run the benchmark again.") from error
    except (ValueError, TypeError, AttributeError) as error:
        reason = "a value in it has the wrong kind"
        raise UserError(f"{path} is damaged: {reason} ({error}). Delete it and run the benchmark again.") from error


def _read_checks(path: Path) -> list[Check]:
    return _read(path, _checks) if path.exists() else []


def _checks(path: Path, content: Mapping[str, Any]) -> list[Check]:
    return [
        Check(
            name=str(check["name"]),
            sentence=str(check.get("sentence", "")),
            passed=check["passed"],
            value=finite(check.get("value")),
            low=finite(check.get("low")),
            high=finite(check.get("high")),
            num=check.get("num"),
        )
        for check in content["checks"]
    ]


def _read_specification(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}. Put the benchmark's own file back.") from error


def _check_one_plan(results: Sequence[Cell | Pair | Failure]) -> None:
    """What was measured with other prompts, other judges or another base is not compared."""
    first = results[0]
    for other in results:
        if other.benchmark != first.benchmark:
            raise UserError(
                f"{first.path} and {other.path} are of different plans, bases or judges: run `infusion benchmark` to "
                "the end, or delete the old results."
            )


def _check_one_benchmark(cells: Sequence[Cell]) -> None:
    """Rows are compared only where each is one method with one set of settings, and individuals are the same things."""
    first_of_row: dict[str, Cell] = {}
    first_of_individual: dict[int, Cell] = {}
    for cell in cells:
        if cell.row != cell.path.parent.name:
            raise UserError(f'{cell.path} says it is of row "{cell.row}": results of different benchmarks are mixed.')
        first = first_of_row.setdefault(cell.row, cell)
        if (cell.method, _shared(cell.settings)) != (first.method, _shared(first.settings)):
            raise _mixed(first, cell, "methods or settings")
        first = first_of_individual.setdefault(cell.individual, cell)
        if cell.class_noun != first.class_noun:
            raise _mixed(first, cell, "class nouns for one individual")


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without the rare token, which two individuals of one class have different ones of, to stand in one prompt."""
    return {name: value for name, value in settings.items() if name != "rare_token"}


def _mixed(first: Cell, second: Cell, what: str) -> UserError:
    return UserError(
        f"{first.path} and {second.path} have different {what}: results of different benchmarks are mixed. "
        "Keep each benchmark in its own folder."
    )
