"""Results of a benchmark on disk -> a table of figures with intervals over individuals."""

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from infusion import intervals
from infusion.errors import UserError, nearest
from infusion.intervals import Figure
from infusion.metrics.catalogue import (
    BASE,
    BY_NAME,
    MEASURES,
    NOT_METHODS,
    PAIR_MEASURES,
    REFERENCE,
    ROUNDING,
    UNCHANGED,
    Measure,
    arrow,
)

FEWEST = 5  # individuals: an interval over fewer rests on assumptions that they cannot show, so no verdict does
_SHARES = {measure.name for measure in (*MEASURES, *PAIR_MEASURES) if measure.is_share}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Tile:
    """One picture of a cell's strip: the number of its place there, and what it was drawn from."""

    place: int
    kind: str
    prompt: str
    seed: int | None
    score: float | None


@dataclass(frozen=True)
class Cell:
    """What one row of the benchmark measured on one individual.

    benchmark: a digest of what all results of one benchmark share; None in a file that does not say. measures, nulls:
    only finite numbers.
    """

    path: Path
    benchmark: str | None
    row: str
    method: str
    paper: str
    settings: Mapping[str, Any]
    individual: int
    class_noun: str
    num_parameters: int | None
    file_bytes: int | None
    train_seconds: float | None
    seconds_per_image: float | None
    evaluation_seconds: float | None
    num_images: int
    measures: Mapping[str, float]
    nulls: Mapping[str, float]
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Pair:
    """What one row measured on two concepts in one prompt."""

    path: Path
    benchmark: str | None
    row: str
    individuals: tuple[int, ...]
    same_class: bool
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Failure:
    """A result that could not be made: a training that diverged."""

    path: Path
    benchmark: str | None
    row: str
    individuals: str
    reason: str


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
        cells = self.cells[row].values()
        return {cell.individual: cell.measures[name] for cell in cells if name in cell.measures}

    def figure(self, row: str, name: str) -> Figure | None:
        """Mean over individuals, with its interval; None where nothing was measured."""
        return _measured(name, self.values(row, name).values())

    def null(self, row: str, name: str) -> float | None:
        """What finite samples alone make of a measure: mean over individuals."""
        figure = _mean(cell.nulls[name] for cell in self.cells[row].values() if name in cell.nulls)
        return figure and figure.value

    def difference(self, row: str, name: str, reference: str | None = None) -> Figure | None:
        """Row minus reference, over the individuals both have."""
        ours, theirs = self.values(row, name), self.values(reference or self.reference, name)
        return _mean(ours[individual] - theirs[individual] for individual in sorted(ours.keys() & theirs))

    def pair_figure(self, row: str, name: str, same_class: bool) -> Figure | None:
        """Mean over pairs of concepts, with its interval."""
        pairs = [pair for pair in self.pairs if pair.row == row and pair.same_class == same_class]
        return _measured(name, (pair.measures[name] for pair in pairs if name in pair.measures))

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


# From disk.


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
    told = [_read(path, _or_failure(_cell)) for path in paths]
    told_of_pairs = [_read(path, _or_failure(_pair)) for path in _of_this_benchmark(folder / "pairs", specification)]
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


def _or_failure(parse: Callable[[Path, Mapping[str, Any]], _T]) -> Callable[[Path, Mapping[str, Any]], _T | Failure]:
    """What `parse` makes of a result, unless the result says that it failed."""

    def parsed(path: Path, content: Mapping[str, Any]) -> _T | Failure:
        if content.get("failed"):
            return Failure(path, _benchmark(content), str(content["row"]), path.stem, str(content["failed"]))
        return parse(path, content)

    return parsed


def _cell(path: Path, content: Mapping[str, Any]) -> Cell:
    tiles = [
        Tile(place, str(tile["kind"]), str(tile.get("prompt", "")), tile.get("seed"), _finite(tile.get("score")))
        for place, tile in enumerate(content.get("tiles", ()))
    ]
    return Cell(
        path=path,
        benchmark=_benchmark(content),
        row=str(content["row"]),
        method=str(content.get("method", content["row"])),
        paper=str(content.get("paper") or ""),
        settings=dict(content.get("settings") or {}),
        individual=int(content["individual"]),
        class_noun=str(content["class_noun"]),
        num_parameters=content.get("num_parameters"),
        file_bytes=content.get("file_bytes"),
        train_seconds=_finite(content.get("train_seconds")),
        seconds_per_image=_finite(content.get("seconds_per_image")),
        evaluation_seconds=_finite(content.get("evaluation_seconds")),
        num_images=int(content.get("num_images") or 0),
        measures=_finite_only(content["measures"]),
        nulls=_finite_only(content.get("nulls") or {}),
        tiles=tiles,
    )


def _pair(path: Path, content: Mapping[str, Any]) -> Pair:
    individuals = tuple(int(individual) for individual in content["individuals"])
    return Pair(
        path=path,
        benchmark=_benchmark(content),
        row=str(content["row"]),
        individuals=individuals,
        same_class=bool(content["same_class"]),
        measures=_finite_only(content["measures"]),
    )


def _benchmark(content: Mapping[str, Any]) -> str | None:
    return str(content["benchmark"]) if content.get("benchmark") else None


def _read_checks(path: Path) -> list[Check]:
    return _read(path, _checks) if path.exists() else []


def _checks(path: Path, content: Mapping[str, Any]) -> list[Check]:
    return [
        Check(
            name=str(check["name"]),
            sentence=str(check.get("sentence", "")),
            passed=check["passed"],
            value=_finite(check.get("value")),
            low=_finite(check.get("low")),
            high=_finite(check.get("high")),
            num=check.get("num"),
        )
        for check in content["checks"]
    ]


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _finite_only(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: number for name, value in values.items() if (number := _finite(value)) is not None}


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


# The table.


def warnings(results: Results) -> list[str]:
    """One sentence for every failure, one for too few individuals, one when rows were measured on different ones."""
    sentences = [f"{some.row} failed on {some.individuals}: {some.reason}" for some in results.failures]
    lacking = {row: sorted(results.individuals.keys() - results.cells[row].keys()) for row in results.rows}
    missing = [f"{row} lacks {', '.join(map(str, those))}" for row, those in lacking.items() if those]
    if missing:
        sentences.append(
            f"Not every row has all {len(results.individuals)} individuals ({'; '.join(missing)}), so compare rows by "
            "their paired differences, which use the individuals both have, and not by their means."
        )
    if len(results.individuals) < FEWEST:
        sentences.append(
            f"With fewer than {FEWEST} individuals no row is called the best and no difference clear: intervals over "
            "so few are wide, and rest on the assumption that individuals scatter normally."
        )
    return sentences


def cost(results: Results, row: str, name: str) -> float | None:
    """Mean over individuals of a number that is counted and not measured: `num_parameters`, `train_seconds`, ..."""
    values = [getattr(cell, name) for cell in results.cells[row].values()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


COSTS = ("num_parameters", "file_bytes", "train_seconds", "seconds_per_image")


def table(results: Results) -> list[dict[str, Any]]:
    """One line for every row and measure that has a figure."""
    return [
        {
            "row": row,
            "measure": measure.name,
            **_plain(figure),
            "null": results.null(row, measure.name),
            "reference": results.reference,
            "difference": _plain(results.difference(row, measure.name)),
        }
        for row in results.rows
        for measure in MEASURES
        if (figure := results.figure(row, measure.name))
    ]


def _plain(figure: Figure | None) -> dict[str, float | int | None]:
    if figure is None:
        return {"value": None, "low": None, "high": None, "num": 0}
    return {"value": figure.value, "low": _finite(figure.low), "high": _finite(figure.high), "num": figure.num}


def to_json(results: Results) -> str:
    """Everything a table is made of, for programs."""
    content = {
        "title": results.title,
        "reference": results.reference,
        "individuals": {str(individual): noun for individual, noun in results.individuals.items()},
        "rows": [{"row": row, **{name: cost(results, row, name) for name in COSTS}} for row in results.rows],
        "figures": table(results),
        "warnings": warnings(results),
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def to_markdown(results: Results, names: Sequence[str]) -> str:
    """The measures named -> a table in Markdown, each figure with its interval, the best in bold."""
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise UserError(f'There is no measure "{unknown[0]}".{nearest(unknown[0], BY_NAME)}')
    columns = [_markdown_column(results, BY_NAME[name]) for name in names]
    head = ["row", "individuals", *(BY_NAME[name].label + arrow(BY_NAME[name]) for name in names)]
    body = [
        [row, str(len(results.cells[row])), *(column[i] for column in columns)] for i, row in enumerate(results.rows)
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |\n" for line in lines)


def _markdown_column(results: Results, measure: Measure) -> list[str]:
    figures = [results.figure(row, measure.name) for row in results.rows]
    decimals = num_decimals(figures)
    best, not_worse = results.best(measure)
    texts = []
    for row, figure in zip(results.rows, figures, strict=True):
        text = format_number(figure.value if figure else None, decimals)
        text = f"**{text}**" if row == best else f"**{text}**†" if row in not_worse else text
        interval = format_interval(figure, decimals) if figure else ""
        texts.append(f"{text} ({interval})" if interval else text)
    return texts


def num_decimals(figures: Iterable[Figure | None]) -> int:
    """So many that a column's largest value has three digits, and up to two more for its smallest to have two.

    A value that its interval hides counts as large as that; what is a millionth of the largest or less, as rounding
    alone makes it, is not shown in digits.
    """
    sizes = [max(abs(figure.value), _half_width(figure)) for figure in figures if figure and figure.value]
    if not sizes:
        return 0
    sizes = [size for size in sizes if size > 1e-6 * max(sizes)]
    largest, smallest = (math.floor(math.log10(size)) for size in (max(sizes), min(sizes)))
    return min(6, max(0, 2 - largest, min(1 - smallest, 4 - largest)))


def _half_width(figure: Figure) -> float:
    return 0.0 if math.isnan(figure.low) else (figure.high - figure.low) / 2


def format_number(value: float | None, decimals: int, signed: bool = False) -> str:
    """A number, a dash where there is none. "0" is exactly zero; what only rounds to it is "<0.001"."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    text = f"{abs(value):.{decimals}f}"
    small = "" if float(text) else "<" if value > 0 else ">"
    text = text if float(text) else f"{10**-decimals:.{decimals}f}"
    return small + ("−" if value < 0 else "+" if signed else "") + text


def format_interval(figure: Figure, decimals: int, signed: bool = False) -> str:
    """ "0.41 to 0.52", or an empty string where there is no interval."""
    if math.isnan(figure.low):
        return ""
    if figure.low == figure.high:
        return "no spread"
    return f"{format_number(figure.low, decimals, signed)} to {format_number(figure.high, decimals, signed)}"
