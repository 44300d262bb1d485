"""Numbers and intervals -> the texts that tables show."""

import math
from collections.abc import Iterable

from infusion.intervals import Figure


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
