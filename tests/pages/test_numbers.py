import pytest

from infusion.intervals import Figure
from infusion.pages.numbers import (
    format_bytes,
    format_figure,
    format_interval,
    format_number,
    format_seconds,
    num_decimals,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (59.96, "1 min 0 s"), (112, "1 min 52 s"), (3599.6, "1 h 0 min"), (7300, "2 h 1 min")],
)
def test_seconds_read_like_time(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.1234, "0.123"), (-0.5, "−0.500"), (1e-6, "<0.001"), (-1e-6, ">−0.001"), (None, "–")],
)
def test_only_zero_is_printed_as_zero(value: float | None, text: str) -> None:
    assert format_number(value, 3) == text


def test_what_rounding_alone_makes_takes_no_digits() -> None:
    of = [Figure(value, value, value, 5) for value in (0.5, 0.02, 1e-8)]
    assert num_decimals(of) == num_decimals(of[:2]) == 3
    assert num_decimals(of[2:]) == 6
    hidden = Figure(0.0009, -0.04, 0.04, 20)
    assert num_decimals([*of[:2], hidden]) == 3


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1e-10, "<1e−9"), (0.12345, "0.123"), (-12.345, "−12.3"), (2e-5, "2e−5")]
)
def test_without_decimals_a_number_has_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_an_interval_is_told_where_there_is_one() -> None:
    assert format_figure(Figure(0.62, 0.51, 0.7, 9)) == "0.620 (0.510 to 0.700)"
    assert format_figure(Figure(0.62, NAN, NAN, 1)) == format_figure(Figure(0.62, 0.62, 0.62, 9)) == "0.620"
    assert format_interval(Figure(0.62, NAN, NAN, 1)) == "" and format_interval(Figure(1, 1, 1, 9)) == "no spread"


def test_bytes_have_three_digits() -> None:
    assert [format_bytes(num) for num in (12, 50_200, 3.4e6, 2e9)] == ["12 B", "50.2 kB", "3.4 MB", "2 GB"]
