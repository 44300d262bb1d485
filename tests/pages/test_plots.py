import base64
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_results import ROWS, write_results

from infusion.benchmark.results import Results, load_results
from infusion.intervals import Figure
from infusion.pages.plots import OVERFITTING, marker, pareto_front, scatter_plots


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load_results(write_results(tmp_path_factory.mktemp("made"), num_individuals=3))


def texts(address: str) -> list[str]:
    """What is written in a plot."""
    kind, content = address.split(",")
    assert kind == "data:image/svg+xml;base64"
    root = ElementTree.fromstring(base64.b64decode(content))
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_front_holds_what_none_beats_in_both() -> None:
    places = {"base": (0.0, 0.0), "a": (1.0, 0.5), "worse": (1.0, 0.4), "b": (2.0, 0.9), "beaten": (3.0, 0.8)}
    assert pareto_front(places) == ["base", "a", "b"]


def test_every_plot_names_its_rows_its_axes_and_its_front(results: Results) -> None:
    plots = scatter_plots(results)
    assert len(plots) == len(OVERFITTING) == 4
    for plot, overfitting in zip(plots, OVERFITTING, strict=True):
        for address in (plot.light, plot.dark):
            assert {*ROWS, f"{overfitting.label} →", "identity →", "0.0", "1.0"} <= set(texts(address))
        assert plot.light != plot.dark and plot.width_px > 300 and plot.height_px > plot.width_px / 2
        front = plot.description.removesuffix(".").split("front: ")[1].split(", ")
        assert {"base", "infusion", "dreambooth"} <= set(front) and "null" not in front


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(results: Results) -> None:
    assert scatter_plots(results) == scatter_plots(results)


def test_ticks_of_a_root_scale_are_squares_and_have_room(results: Results) -> None:
    assert {"0", "0.01", "0.04", "0.09", "0.16"} <= set(texts(scatter_plots(results)[0].light))


def test_what_is_missing_of_the_prompt_turns_its_interval_round(results: Results) -> None:
    facts = results.figure("lora", "facts")
    [overfitting] = [one for one in OVERFITTING if one.complement]
    assert facts is not None
    assert overfitting.figure(results, "lora") == Figure(1 - facts.value, 1 - facts.high, 1 - facts.low, facts.num)


def test_many_rows_can_be_told_apart_without_colour() -> None:
    rows = [*(str(number) for number in range(32)), "base", "null"]
    assert len({marker(rows, row) for row in rows}) == len(rows)


def test_one_individual_and_odd_names_are_drawn(tmp_path: Path) -> None:
    folder = write_results(tmp_path, ("infusion", "lora"), num_individuals=1)
    (folder / "cells/lora").rename(folder / "cells/<a> $b$")
    path = folder / "cells/<a> $b$/0.json"
    path.write_text(path.read_text().replace('"row": "lora"', '"row": "<a> $b$"'))
    assert "<a> $b$" in texts(scatter_plots(load_results(folder))[0].dark)


def test_one_row_is_no_comparison(tmp_path: Path) -> None:
    assert scatter_plots(load_results(write_results(tmp_path, ("lora",), num_individuals=1))) == []


def test_only_a_distance_between_pictures_has_a_line_of_chance(results: Results) -> None:
    lines = []
    for plot in scatter_plots(results):
        svg = base64.b64decode(plot.light.split(",")[1]).decode()
        lines.append(svg.count("stroke-dasharray: 1,1.65"))
    assert [one.name for one in OVERFITTING] == ["lfd_s4", "w2_background", "w2_layout", "facts"]
    assert lines == [2, 3, 3, 2]  # two more are what identity is measured between
