"""A benchmark's results -> one page.

The page is a single HTML file like that of a training: no script, nothing from the network.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from infusion.benchmark.cells import Cell
from infusion.benchmark.page_images import cases_of, sheet_of, shown_individuals
from infusion.benchmark.results import FEWEST, Check, Results, is_clear, load_results
from infusion.benchmark.table import cost, warnings
from infusion.intervals import Figure
from infusion.metrics.catalogue import BASE, BY_NAME, MEASURES, NOT_METHODS, NOTES, NULL, PAIR_MEASURES, arrow
from infusion.metrics.metric import AGNOSTIC, FACTS, KL, RELATIVE, SPECIFIC, Measure
from infusion.pages.html import render, write
from infusion.pages.numbers import (
    NOTHING,
    format_bytes,
    format_count,
    format_interval,
    format_number,
    format_seconds,
    num_decimals,
)
from infusion.pages.plots import scatter_plots

MAIN = ("identity", "image_alignment", "text_alignment", "facts", "lfd_s4", "w2_background")
_CHANCE = (
    "Finite samples alone give a distance above zero: the row “null” is the base model drawn again with other seeds, "
    "and what chance alone gives stands under a figure where it was measured."
)
LIMITS = (
    "The embedded toy world answers exactly what is in an image, so these figures can support or refute a "
    "claim about a mechanism. They are not the paper’s numbers, and they predict none of them.",
    "Intervals are over individuals: they say what other individuals of these classes would give, not other prompts, "
    "seeds, base models or classes.",
    "A dozen rows by many measures are many comparisons at 95% each, uncorrected: believe a difference that several "
    "measures share, not the one that stands out.",
    "Every measure is our definition of it: the paper names a latent Fisher divergence and a Wasserstein metric, and "
    "the formulas here are this project’s.",
)


def write_comparison(results_dir: str | Path, page_path: str | Path) -> None:
    """A folder of results -> one HTML file, whole or not at all. UserError when there is nothing to show."""
    write(render_comparison(load_results(results_dir)), page_path)


def render_comparison(results: Results) -> str:
    """Results -> HTML. All text is escaped."""
    return render(
        "comparison.html.j2",
        results=results,
        statement=statement(results),
        warnings=warnings(results),
        plots=scatter_plots(results),
        main=_table(results, [BY_NAME[name] for name in MAIN], with_costs=True),
        differences=_differences(results, [BY_NAME[name] for name in MAIN]),
        has_training=any(
            t.kind == "training" for some in results.cells.values() for c in some.values() for t in c.tiles
        ),
        groups={group: _table(results, _in_group(group)) for group in (AGNOSTIC, SPECIFIC, FACTS, RELATIVE, KL)},
        pairs=[(same, table) for same in (False, True) if (table := _pairs_table(results, same)).rows],
        individuals=[sheet for individual in shown_individuals(results) if (sheet := sheet_of(results, individual))],
        cases=[cases for row in results.rows if row not in NOT_METHODS and (cases := cases_of(results, row))],
        measures=_explained(results),
        checks=[
            ("Are the measures valid?", _checks(results.validity)),
            ("Does a stop rule built on them pick well?", _checks(results.stop_rule)),
        ],
        settings=[_settings(results, row) for row in results.rows],
        notes={**NOTES, SPECIFIC: f"{NOTES[SPECIFIC]} {_CHANCE}"},
        fewest=FEWEST,
        limits=LIMITS,
        reference=results.reference,
    )


def statement(results: Results) -> str:
    """One sentence: what was compared, how much of it, and how long it took."""
    methods = [row for row in results.rows if row not in NOT_METHODS]
    nouns = sorted(set(results.individuals.values()))
    cells = [cell for some in results.cells.values() for cell in some.values()]
    seconds = sum(_seconds(cell) for cell in cells)
    counted = [_counted(results.specification, name) for name in ("prompts", "seeds")]
    drawn = f"{sum(cell.num_images for cell in cells):,} images"
    if known := [text for text in counted if text]:
        drawn += f" ({' × '.join(known)} for each)"
    return (
        f"{format_count(len(methods), 'method')} compared on {format_count(len(results.individuals), 'individual')} "
        f"({', '.join(nouns)}), beside {_both(results)}: {drawn} in {format_seconds(seconds)} of training and "
        "measuring."
    )


def _seconds(cell: Cell) -> float:
    drawing = (cell.seconds_per_image or 0.0) * cell.num_images
    training = cell.trained.train_seconds if cell.trained else None
    return (training or 0.0) + (cell.evaluation_seconds or drawing)


def _counted(specification: Mapping[str, object], name: str) -> str:
    """How many prompts or seeds the specification says, in words; nothing where it does not say."""
    drawing = specification.get("drawing")
    told = {**specification, **(drawing if isinstance(drawing, dict) else {})}
    value = told.get(name, told.get(f"num_{name}"))
    num = len(value) if isinstance(value, list) else value if isinstance(value, int) else 0
    return format_count(num, name.removesuffix("s")) if num else ""


def _both(results: Results) -> str:
    there = [
        words
        for row, words in ((BASE, "the untouched model"), (NULL, "itself with other seeds"))
        if row in results.rows
    ]
    return " and ".join(there) or "nothing"


# --------------------------------------------------------------------------------------------------------- tables


def _in_group(group: str) -> list[Measure]:
    return [measure for measure in MEASURES if measure.group == group]


def _was_measured(results: Results, measure: Measure) -> bool:
    return any(results.values(row, measure.name) for row in results.rows)


def _explained(results: Results) -> list[Measure]:
    measured = [measure for measure in MEASURES if _was_measured(results, measure)]
    return measured + [m for m in PAIR_MEASURES if any(pair.measures.get(m.name) is not None for pair in results.pairs)]


class _Entry(NamedTuple):
    """One figure of a table."""

    text: str
    interval: str = ""
    mark: str = ""
    under: str = ""


class _Column(NamedTuple):
    label: str
    title: str = ""


class _Table(NamedTuple):
    columns: Sequence[_Column]
    rows: Sequence[tuple[str, Sequence[_Entry]]]  # a row's name, its entries

    @property
    def marks(self) -> set[str]:
        return {entry.mark for _, entries in self.rows for entry in entries if entry.mark}


def _table(results: Results, measures: Sequence[Measure], with_costs: bool = False) -> _Table:
    """Rows x measures, as far as measured at all."""
    measures = [measure for measure in measures if _was_measured(results, measure)]
    columns = [_Column(measure.label + arrow(measure), measure.sentence) for measure in measures]
    entries = [_entries(results, measure, with_null=not with_costs) for measure in measures]
    if with_costs:
        columns = [_Column("n", "individuals"), *columns, *(_Column(label) for label, _, _ in _COSTS)]
        counts = [_Entry(str(len(results.cells[row]))) for row in results.rows]
        entries = [counts, *entries, *(_cost_entries(results, name, show) for _, name, show in _COSTS)]
    return _rows_first(results.rows, columns, entries)


def _rows_first(rows: Sequence[str], columns: Sequence[_Column], entries: Sequence[Sequence[_Entry]]) -> _Table:
    """Entries column by column -> a table row by row."""
    return _Table(columns, [(row, [column[i] for column in entries]) for i, row in enumerate(rows)])


def _entries(results: Results, measure: Measure, with_null: bool) -> list[_Entry]:
    figures = [results.figure(row, measure.name) for row in results.rows]
    best, not_worse = results.best(measure)
    decimals = num_decimals(figures)
    entries = []
    for row, entry in zip(results.rows, _plain_entries(figures), strict=True):
        null = results.null(row, measure.name)
        mark = "best" if row == best else "not worse" if row in not_worse else ""
        if row not in NOT_METHODS and results.values(row, measure.name) and results.is_unchanged(row, measure.name):
            mark = "unchanged"
        under = f"chance {format_number(null, decimals)}" if with_null and null is not None else ""
        entries.append(entry._replace(mark=mark, under=under))
    return entries


def _plain_entries(figures: Sequence[Figure | None], signed: bool = False) -> list[_Entry]:
    decimals = num_decimals(figures)
    return [
        _Entry(format_number(figure.value, decimals, signed), format_interval(figure, decimals, signed))
        if figure
        else _Entry(NOTHING)
        for figure in figures
    ]


_COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("file", "file_bytes", format_bytes),
    ("numbers", "num_parameters", lambda num: f"{num:,.0f}"),
    ("training", "train_seconds", format_seconds),
)


def _cost_entries(results: Results, name: str, show: Callable[[float], str]) -> list[_Entry]:
    values = [cost(results, row, name) for row in results.rows]
    return [_Entry(show(value)) if value else _Entry(NOTHING) for value in values]


def _differences(results: Results, measures: Sequence[Measure]) -> _Table:
    """Row minus reference; marked where its interval leaves out zero."""
    rows = [row for row in results.rows if row not in (results.reference, NULL)]
    measures = [measure for measure in measures if results.values(results.reference, measure.name)]
    entries = []
    for measure in measures:
        figures = [results.difference(row, measure.name) for row in rows]
        plain = _plain_entries(figures, signed=True)
        entries.append([_with_verdict(entry, figure, measure) for entry, figure in zip(plain, figures, strict=True)])
    columns = [_Column(measure.label + arrow(measure), measure.sentence) for measure in measures]
    return _rows_first(rows, columns, entries)


def _with_verdict(entry: _Entry, figure: Figure | None, measure: Measure) -> _Entry:
    if figure is None or not is_clear(figure) or measure.better is None:
        return entry
    better = (figure.value > 0) == (measure.better == "higher")
    return entry._replace(mark="clear", under="better" if better else "worse")


def _pairs_table(results: Results, same_class: bool) -> _Table:
    """Rows x what was measured on two concepts in one prompt; without rows where there was no such pair."""
    counts = {row: sum(p.row == row and p.same_class == same_class for p in results.pairs) for row in results.rows}
    rows = [row for row, num in counts.items() if num]
    columns = [
        _Column("pairs"),
        *(_Column(measure.label + arrow(measure), measure.sentence) for measure in PAIR_MEASURES),
    ]
    entries = [[_Entry(str(counts[row])) for row in rows]]
    for measure in PAIR_MEASURES:
        entries.append(_plain_entries([results.pair_figure(row, measure.name, same_class) for row in rows]))
    return _rows_first(rows, columns, entries)


def _checks(checks: Sequence[Check]) -> list[tuple[Check, str, str]]:
    """Each check with its figure and its outcome in words."""
    outcomes = {True: "passed", False: "FAILED", None: "shown only"}
    return [(check, _check_figure(check), outcomes[check.passed]) for check in checks]


def _check_figure(check: Check) -> str:
    if check.value is None:
        return NOTHING
    low, high = (math.nan if bound is None else bound for bound in (check.low, check.high))
    figure = Figure(check.value, low, high, check.num or 0)
    decimals = num_decimals([figure])
    interval = format_interval(figure, decimals)
    return format_number(check.value, decimals) + (f" ({interval})" if interval else "")


def _settings(results: Results, row: str) -> tuple[str, Cell, str]:
    """A row, one of its cells, its settings in one line."""
    cell = next(iter(results.cells[row].values()))
    return row, cell, ", ".join(f"{name} = {value}" for name, value in cell.settings.items())
