"""Several audits, or a run of checkpoints -> one page that puts them side by side."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from infusion.auditing.answers import answers
from infusion.auditing.limits import AXES, axis_figure
from infusion.auditing.page import NOTES_OF_ONE, NUM_CASES, shown
from infusion.auditing.result import AuditResult, Curve
from infusion.intervals import Figure
from infusion.metrics.catalogue import BASE, NOTES, REFERENCE
from infusion.metrics.metric import AGNOSTIC, SPECIFIC
from infusion.pages.html import render, style, write
from infusion.pages.numbers import format_count, format_figure
from infusion.pages.plots import Plot, curve_plot, scatter_plots


class Row(NamedTuple):
    """A model in the table. cells: an answer's word and its number, by axis; page: its own."""

    name: str
    kind: str
    size: str
    page: str
    cells: Sequence[tuple[str, str]]


class Compared:
    """Several audits as a table of figures: what plots are drawn from."""

    def __init__(self, audits: Sequence[AuditResult]) -> None:
        self.audits = dict(zip(unique_names(audits), audits, strict=True))
        self.rows = (*self.audits, BASE)
        self.reference = next((name for name, one in self.audits.items() if one.about["method"] == REFERENCE), "")

    def figure(self, row: str, name: str) -> Figure | None:
        if row != BASE:
            return self.audits[row].figure(name)
        first = next(iter(self.audits.values()))
        return replace(first, own=first.untouched).figure(name)


def unique_names(audits: Sequence[AuditResult]) -> list[str]:
    """Their names, numbered where two are called alike, or as the base model is; a plot leaves out a first "_"."""
    names = [one.name.lstrip("_") or "_" for one in audits]
    if len({*names, BASE}) == len(names) + 1:
        return names
    return [f"{n}. {name}" for n, name in enumerate(names, 1)]


def write_audits(
    audits: Sequence[AuditResult], pages: Sequence[str], path: str | Path, curve: Curve | None = None
) -> None:
    """One HTML file about several audits, or about a run, whole or not at all.

    Args:
        pages: the page of each, to be linked.

    Raises:
        UserError: it cannot be written.
    """
    write(render_audits(audits, pages, curve), path)


def render_audits(audits: Sequence[AuditResult], pages: Sequence[str], curve: Curve | None = None) -> str:
    """HTML; all text is escaped."""
    compared, first = Compared(audits), audits[0]
    num_seeds = first.plan.drawing.num_seeds
    prompts = range(0, len(first.own.drawn.images), num_seeds)
    grid = [
        (
            first.plan.prompts[n // num_seeds].text.format(f"<{first.class_noun}>"),
            [shown(first.untouched.drawn.images[n])] + [shown(one.own.drawn.images[n]) for one in audits],
        )
        for n in list(prompts)[:NUM_CASES]
    ]
    return render(
        "audits.html.j2",
        style=style("audit.css"),
        first=first,
        told=format_count(len(audits), "customization"),
        rows=[_row(one, name, page) for (name, one), page in zip(compared.audits.items(), pages, strict=True)],
        axes=[(answer.question, AXES[answer.axis].sentence) for answer in answers(first) if answer.axis],
        plots=scatter_plots(compared),
        curve=_plotted(curve) if curve else None,
        kept=curve.kept if curve else None,
        last=curve.checks[-1] if curve else None,
        names=["base model", *compared.audits],
        grid=grid,
        notes=(NOTES[AGNOSTIC], NOTES[SPECIFIC], *NOTES_OF_ONE),
    )


def _plotted(curve: Curve) -> Plot:
    lines = {
        "learnt": [check.learnt for check in curve.checks],
        "prompts followed": [check.followed for check in curve.checks],
        "harmonic mean": [check.score for check in curve.checks],
    }
    return curve_plot([check.step for check in curve.checks], lines, curve.kept.step)


def _row(found: AuditResult, name: str, page: str) -> Row:
    words = {answer.axis: answer.word for answer in answers(found)}
    cells = [(words[axis], format_figure(figure) if (figure := axis_figure(found, axis)) else "") for axis in AXES]
    settings = found.about["settings"]
    said = [f"{name} {settings[name]}" for name in ("rank", "changes") if name in settings]
    kind = ", ".join([str(found.about["method"]), *said])
    return Row(name, kind, f"{found.file_bytes:,} bytes", quote(page), cells)
