"""Results -> a table in Markdown and in JSON, and what there is to warn of."""

import json
from collections.abc import Sequence
from typing import Any

from infusion.benchmark.cells import finite
from infusion.benchmark.results import FEWEST, Results
from infusion.errors import UserError, nearest
from infusion.intervals import Figure
from infusion.metrics.catalogue import BY_NAME, MEASURES, arrow
from infusion.metrics.metric import Measure
from infusion.pages.numbers import format_interval, format_number, num_decimals

COSTS = ("num_parameters", "file_bytes", "train_seconds", "seconds_per_image")


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
    cells = results.cells[row].values()
    values = [getattr(cell if name == "seconds_per_image" else cell.trained, name, None) for cell in cells]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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
    return {"value": figure.value, "low": finite(figure.low), "high": finite(figure.high), "num": figure.num}


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
