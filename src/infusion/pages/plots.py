"""A table of figures -> scatter plots of fidelity against overfitting, as SVG by matplotlib.

A row is told by the shape of its marker, so that the plots can be read in black and white. Each is drawn twice, in inks
for light pages and in inks for dark ones.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

from infusion.intervals import Figure
from infusion.metrics.catalogue import BASE, NOT_METHODS, NULL

_WIDTH_IN, _HEIGHT_IN, _LEGEND_LINE_IN = 4.4, 3.3, 0.17
_LEGEND_COLUMNS = 2
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "infusion",  # the same results give the same bytes
    "text.parse_math": False,
    "font.size": 8.5,
    "legend.fontsize": 8.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.ymargin": 0.08,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 6.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
_SHAPES = "os^DvP<>"
_FILLS = ("full", "none", "left", "top")
_CROSSES = {BASE: ("x", "full"), NULL: ("+", "full")}


class _Inks(NamedTuple):
    """The page's colours: of text and markers, of what is said aside, of lines behind, of the reference, and the page's
    own."""

    ink: str
    soft: str
    line: str
    concept: str
    ground: str


_LIGHT = _Inks("#182025", "#58646c", "#e1e6e8", "#a3174f", "#fafbfb")
_DARK = _Inks("#e6eaec", "#97a3ab", "#283138", "#ff8fb3", "#101417")


class Table(Protocol):
    """Rows of measures: `Results` of a benchmark, or several audits. reference: the row that is drawn in colour."""

    @property
    def rows(self) -> Sequence[str]: ...

    @property
    def reference(self) -> str: ...

    def figure(self, row: str, name: str) -> Figure | None: ...


class _Overfitting(NamedTuple):
    """What stands on a plot's x axis. complement: one minus the measure; root: drawn on a square-root scale."""

    name: str
    label: str
    complement: bool = False
    root: bool = False

    @property
    def has_chance(self) -> bool:
        """Whether the row of other seeds is what finite samples alone give: so it is of a distance between images."""
        return self.name.startswith("w2_")

    def figure(self, results: Table, row: str) -> Figure | None:
        figure = results.figure(row, self.name)
        if figure and self.complement:
            return Figure(1 - figure.value, 1 - figure.high, 1 - figure.low, figure.num)
        return figure


# A divergence is a mean of squares: its root is in the unit of the predicted noise, and keeps small ones apart.
OVERFITTING = (
    _Overfitting("lfd_s4", "LFD S4, change in other content (square-root scale)", root=True),
    _Overfitting("w2_background", "W2 background, distance to the base model’s backgrounds"),
    _Overfitting("w2_layout", "W2 layout, distance to the base model’s layouts"),
    _Overfitting("facts", "1 − facts, share of the prompt that is not in the image", complement=True),
)


class Plot(NamedTuple):
    """A plot for light pages and for dark ones, as `data:` addresses, and its size on the page."""

    light: str
    dark: str
    width_px: int
    height_px: int
    description: str


_Places = Mapping[str, tuple[Figure, Figure]]  # row -> overfitting, identity


def scatter_plots(results: Table) -> list[Plot]:
    """Small multiples: overfitting from left to right, identity from below; only those with two rows to show."""
    found = [(overfitting, _places(results, overfitting)) for overfitting in OVERFITTING]
    return [_plot(results, overfitting, places) for overfitting, places in found if len(places) > 1]


def curve_plot(steps: Sequence[int], lines: Mapping[str, Sequence[float]], kept_step: int) -> Plot:
    """What was read at every checkpoint of a run, up to three lines, from left to right; and the step to keep."""
    light, dark = (_curve_svg(steps, lines, kept_step, inks) for inks in (_LIGHT, _DARK))
    description = f"{', '.join(lines)} over {len(steps)} checkpoints; the one to keep is step {kept_step}."
    return Plot(light, dark, round(96 * _WIDTH_IN), round(96 * _HEIGHT_IN), description)


def _curve_svg(steps: Sequence[int], lines: Mapping[str, Sequence[float]], kept_step: int, inks: _Inks) -> str:
    with style.context(["default", _STYLE, _in_inks(inks)]):
        drawing = Drawing(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        axes = drawing.add_subplot(xlabel="training step →", ylabel="share →")
        axes.axvline(kept_step, color=inks.concept, linewidth=1.2)
        at: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "va": "top"}
        axes.annotate(f"keep step {kept_step}", (kept_step, 1), (3, -3), color=inks.concept, **at)
        for (name, values), (shape, dashes) in zip(lines.items(), (("o", ":"), ("s", "--"), ("D", "-")), strict=False):
            look: dict[str, Any] = {"marker": shape, "linestyle": dashes, "markersize": 4, "linewidth": 1}
            axes.plot(steps, values, color=inks.ink, label=name, **look)
        drawing.legend(loc="outside lower center", ncols=3, frameon=False)
        return _as_address(drawing)


def pareto_front(places: Mapping[str, tuple[float, float]]) -> list[str]:
    """(overfitting, fidelity) of rows -> the rows that none beats in both, from the least overfitting."""
    front: list[str] = []
    for row in sorted(places, key=lambda row: (places[row][0], -places[row][1])):
        if not front or places[row][1] > places[front[-1]][1]:
            front.append(row)
    return front


def marker(rows: Sequence[str], row: str) -> tuple[str, str]:
    """A row's shape and how that is filled, the same in every plot."""
    if row in _CROSSES:
        return _CROSSES[row]
    turn, place = divmod([other for other in rows if other not in NOT_METHODS].index(row), len(_SHAPES))
    return _SHAPES[place], _FILLS[turn % len(_FILLS)]


def _places(results: Table, overfitting: _Overfitting) -> _Places:
    found = {row: (overfitting.figure(results, row), results.figure(row, "identity")) for row in results.rows}
    return {row: (x, y) for row, (x, y) in found.items() if x and y}


def _plot(results: Table, overfitting: _Overfitting, places: _Places) -> Plot:
    front = pareto_front({row: (x.value, y.value) for row, (x, y) in places.items() if row != NULL})
    height = _HEIGHT_IN + _LEGEND_LINE_IN * math.ceil(len(places) / _LEGEND_COLUMNS)
    light, dark = (_svg(results, overfitting, places, front, height, inks) for inks in (_LIGHT, _DARK))
    description = f"Identity against {overfitting.label}. On the Pareto front: {', '.join(front)}."
    return Plot(light, dark, round(96 * _WIDTH_IN), round(96 * height), description)


def _svg(
    results: Table, overfitting: _Overfitting, places: _Places, front: Sequence[str], height: float, inks: _Inks
) -> str:
    """One plot in one page's inks, as a `data:` address."""
    with style.context(["default", _STYLE, _in_inks(inks)]):
        drawing = Drawing(figsize=(_WIDTH_IN, height), layout="constrained")
        axes = drawing.add_subplot(xlabel=f"{overfitting.label} →", ylabel="identity →")
        _draw_known(axes, places[NULL][0] if overfitting.has_chance and NULL in places else None, inks)
        _draw_rows(axes, results, places, front, inks)
        if overfitting.root:
            _scale_by_root(axes)
        legend = drawing.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False)
        _draw_names(legend, results.reference, front, inks)
        return _as_address(drawing)


def _as_address(drawing: Drawing) -> str:
    """A drawing as a `data:` address."""
    stored = io.BytesIO()
    drawing.savefig(stored, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(stored.getvalue()).decode('ascii')}"


def _in_inks(inks: _Inks) -> dict[str, str]:
    aside = dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), inks.soft)
    return {"text.color": inks.ink, "axes.edgecolor": inks.line, "grid.color": inks.line, **aside}


def _scale_by_root(axes: Axes) -> None:
    """A square-root scale, on both sides of zero so that there is room beside it, with ticks at equal distances."""
    axes.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x**2))
    left, right = axes.get_xlim()
    roots = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0, math.sqrt(right))
    ticks = [root**2 for root in roots if root**2 <= right]
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_xlim(left, right)


def _draw_known(axes: Axes, chance: Figure | None, inks: _Inks) -> None:
    """What identity is measured between, and what finite samples alone give of a distance."""
    known = (
        (0, "the base model’s images of the class", 1, "right", -3),
        (1, "other real images; above, copying", 0.02, "left", 3),
    )
    for height, words, x, side, rise in known:
        axes.axhline(height, color=inks.soft, linestyle=":", linewidth=1)
        look: dict[str, Any] = {"ha": side, "va": "top" if rise < 0 else "bottom", "color": inks.soft, "fontsize": 7}
        at = axes.get_yaxis_transform()
        axes.annotate(words, (x, height), (0, rise), xycoords=at, textcoords="offset points", **look)
    if chance:
        axes.axvline(chance.value, color=inks.soft, linestyle=":", linewidth=1)


def _draw_rows(axes: Axes, results: Table, places: _Places, front: Sequence[str], inks: _Inks) -> None:
    """The front as a stair, then every row with its intervals."""
    xs, ys = zip(*((places[row][0].value, places[row][1].value) for row in front), strict=True)
    axes.step(xs, ys, where="post", color=inks.ink, linestyle="--", linewidth=1)
    for x, y in places.values():
        axes.errorbar(x.value, y.value, _ends(y), _ends(x), fmt="none", ecolor=inks.soft, elinewidth=0.8)
    for row, (x, y) in places.items():
        shape, fill = marker(results.rows, row)
        color = inks.concept if row == results.reference else inks.ink
        look: dict[str, Any] = {"marker": shape, "fillstyle": fill, "color": color, "markerfacecoloralt": inks.ground}
        if fill == "none":  # hollow, and yet its intervals do not show through
            look |= {"fillstyle": "full", "markerfacecolor": inks.ground}
        axes.plot(x.value, y.value, linestyle="none", markeredgewidth=1.2, label=row, zorder=3, **look)


def _ends(figure: Figure) -> list[list[float]]:
    """How far an interval reaches down and up; nowhere where there is none."""
    return [[max(0.0, figure.value - figure.low)], [max(0.0, figure.high - figure.value)]]


def _draw_names(legend: Legend, reference: str, front: Sequence[str], inks: _Inks) -> None:
    for text in legend.get_texts():
        text.set_fontweight("bold" if text.get_text() in front else "normal")
        text.set_color(inks.concept if text.get_text() == reference else inks.ink)
