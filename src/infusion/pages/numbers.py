"""Numbers, shares, intervals -> text for people.

Only what is exactly zero is printed as "0": what rounds to it says so.
"""

import math
from collections.abc import Iterable

from infusion.intervals import Figure
from infusion.metrics.catalogue import ROUNDING

NOTHING = "–"


def format_count(num: int, noun: str) -> str:
    """ "1 seed", "1,200 seeds"."""
    return f"{num:,} {noun}{'s' if num != 1 else ''}"


def format_seconds(seconds: float) -> str:
    """3.21 -> "3.2 s", 112 -> "1 min 52 s", 7300 -> "2 h 2 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {whole_seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_bytes(num: float) -> str:
    """50_200 -> "50.2 kB"."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num >= size:
            return f"{num / size:.3g} {unit}"
    return f"{num:.0f} B"


def format_percent(share: float) -> str:
    """0.62 -> "62%", 0.031 -> "3.1%"."""
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def format_in_unit(value: float, unit: str) -> str:
    """0.954, "%" -> "95.4%"; 31.2, "dB" -> "31.20 dB"."""
    return f"{100 * value:.1f}%" if unit == "%" else f"{value:.2f} {unit}".rstrip()


def format_number(value: float | None, decimals: int | None = None, signed: bool = False) -> str:
    """A number with so many decimals, or with three digits; a dash where there is none."""
    if value is None or math.isnan(value):
        return NOTHING
    if value == 0:
        return "0"
    if decimals is None:
        return _with_three_digits(value, signed)
    text = f"{abs(value):.{decimals}f}"
    small = "" if float(text) else "<" if value > 0 else ">"
    text = text if float(text) else f"{10**-decimals:.{decimals}f}"
    return small + _sign(value, signed) + text


def _with_three_digits(value: float, signed: bool) -> str:
    size = abs(value)
    if size <= ROUNDING:
        return "<1e−9"
    decimals = max(0, 2 - math.floor(math.log10(size)))
    text = f"{size:.{decimals}f}" if size >= 1e-4 else f"{size:.3g}".replace("e-0", "e−").replace("e-", "e−")
    return _sign(value, signed) + text


def _sign(value: float, signed: bool) -> str:
    return "−" if value < 0 else "+" if signed else ""


def has_interval(figure: Figure) -> bool:
    """Whether its interval is known, and wider than a point."""
    return math.isfinite(figure.low) and math.isfinite(figure.high) and figure.low < figure.high


def format_interval(figure: Figure, decimals: int | None = None, signed: bool = False) -> str:
    """ "0.41 to 0.52", or an empty string where there is no interval."""
    if not (math.isfinite(figure.low) and math.isfinite(figure.high)):
        return ""
    if figure.low == figure.high:
        return "no spread"
    return f"{format_number(figure.low, decimals, signed)} to {format_number(figure.high, decimals, signed)}"


def format_figure(figure: Figure, decimals: int | None = None) -> str:
    """ "0.62 (0.51 to 0.70)"."""
    interval = f" ({format_interval(figure, decimals)})" if has_interval(figure) else ""
    return format_number(figure.value, decimals) + interval


def format_share(figure: Figure) -> str:
    """ "62% (51% to 70%)"."""
    interval = f" ({figure.low:.0%} to {figure.high:.0%})" if has_interval(figure) else ""
    return f"{figure.value:.0%}{interval}"


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
