import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from infusion import intervals
from infusion.benchmark.results import FEWEST, is_clear, load_results
from infusion.benchmark.table import to_json, to_markdown, warnings
from infusion.errors import UserError
from infusion.metrics.catalogue import BY_NAME, MEASURES
from infusion.metrics.metric import Measure

# row: identity, divergence in other content, W2 of backgrounds, whether it is gated by its token
ROWS = {
    "infusion": (0.62, 0.004, 0.21, True),
    "infusion_more_steps": (0.70, 0.007, 0.25, True),
    "textual_inversion": (0.41, 0.012, 0.34, True),
    "xti": (0.52, 0.011, 0.30, True),
    "perfusion": (0.58, 0.009, 0.29, True),
    "custom_diffusion": (0.72, 0.031, 0.41, False),
    "lora": (0.83, 0.055, 0.52, False),
    "lora_rank_1": (0.66, 0.029, 0.40, False),
    "dreambooth": (0.97, 0.140, 0.83, False),
    "dreambooth_prior": (0.86, 0.072, 0.55, False),
    "base": (0.0, 0.0, 0.0, True),
    "null": (0.01, 0.0, 0.16, True),
}
NOUNS = ("cat", "dog", "turtle", "cat", "car", "robot")
SHOWN = ("on the beach", "in the snow", "in the forest", "at night", "as a sketch", "in the desert")


def write_results(folder: Path, rows: tuple[str, ...] = tuple(ROWS), num_individuals: int = 6, side: int = 8) -> Path:
    """Made-up results: the numbers of `ROWS`, and a little of every individual's own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.toml").write_text('title = "Made-up results"\nprompts = ["a", "b"]\nseeds = [0, 1, 2]\n')
    for row in rows:
        for individual in range(num_individuals):
            path = folder / "cells" / row / f"{individual}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(a_cell(row, individual)))
            strip(row, individual, side).save(path.with_suffix(".webp"), lossless=True)
        for a, b in ((0, 1), (0, 2), (1, 2), (0, 3)):
            path = folder / "pairs" / row / f"{a}-{b}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(a_pair(row, a, b)))
    checks = [
        {"name": "base", "sentence": "Of itself is 0.", "passed": True, "value": 0.0, "low": 0, "high": 0, "num": 9},
        {"name": "prior", "sentence": "Keeps class.", "passed": False, "value": 0.2, "low": 0.1, "high": 0.3, "num": 6},
    ]
    (folder / "validity.json").write_text(json.dumps({"checks": checks}))
    return folder


def a_cell(row: str, individual: int) -> dict:
    identity, divergence, background, is_gated = ROWS[row]
    rng = np.random.default_rng(individual)
    own, noise = rng.normal(), np.random.default_rng([individual, list(ROWS).index(row)])
    taught = row not in ("base", "null")
    identity += taught * (0.08 * own + 0.03 * noise.normal())
    broken = 0.0 if is_gated else divergence
    measures = {
        "identity": identity,
        "image_alignment": 0.6 + 0.25 * identity,
        "text_alignment": 0.27 - 0.05 * background + 0.002 * noise.normal(),
        "facts": 0.93 - 0.4 * background + 0.02 * noise.normal(),
        **{f"facts_{kind}": 0.95 - 0.3 * background * noise.random() for kind in ("class", "background", "style")},
        "facts_time": None,
        **{f"w2_{kind}": background * (1 + 0.1 * noise.random()) for kind in ("gaussian", "exact", "sliced", "style")},
        "w2_background": background * (1 + 0.2 * noise.random()),
        "w2_layout": 0.5 * background * (1 + 0.3 * noise.random()),
        "collapse": 1 - 0.5 * identity,
        "copied": max(0.0, identity - 0.9),
        "lfd_s1": broken * 0.4 * (1 + 0.2 * noise.random()),
        "lfd_s2": broken * 0.7 * (1 + 0.2 * noise.random()),
        "lfd_s3": broken * (1 + 0.2 * noise.random()),
        "lfd_s4": divergence * (1 + 0.5 * noise.random()),
        "lfd_s4_relative": divergence * 3,
        "lfd_s4_kl": divergence * 700,
        "class_diversity": 1.0 if is_gated else 1 - 3 * divergence,
        "class_leak": 0.0 if is_gated else 4 * divergence,
        "of_another_version": 3.0,
    }
    tiles: list[dict[str, Any]] = [{"kind": "training", "prompt": "", "seed": 0, "score": None}] * 3
    tiles += [{"kind": "grid", "prompt": f"a <c> {where}", "seed": 5, "score": 0.5} for where in SHOWN]
    tiles += [{"kind": "worst", "prompt": "a <c>", "seed": i, "score": identity - 0.3 + i / 10} for i in range(2)]
    tiles += [{"kind": "best", "prompt": "a <c>", "seed": i, "score": identity + i / 10} for i in range(2)]
    if row == "base":
        for tile in tiles:
            tile["prompt"] = tile["prompt"].replace("<c>", NOUNS[individual])
    return {
        "row": row,
        "method": row.split("_more")[0],
        "paper": "arXiv 2404.14007",
        "settings": {"learning_rate": 0.01, "max_train_steps": 400} if taught else {},
        "individual": individual,
        "class_noun": NOUNS[individual],
        "num_parameters": (12_480 if is_gated else 860_000) if taught else 0,
        "file_bytes": (50_200 if is_gated else 340_000) if taught else 0,
        "train_seconds": 31.2 * taught,
        "seconds_per_image": 0.3,
        "num_images": 160,
        "measures": measures,
        "nulls": {"w2_gaussian": 0.15, "w2_background": 0.16} if taught else {},
        "tiles": tiles,
    }


def a_pair(row: str, a: int, b: int) -> dict:
    measures = {"both_present": 0.8, "identity_own": 0.5 + a / 10, "identity_other": 0.1 * b, "leak": 0.05 * b}
    nouns = [NOUNS[a], NOUNS[b]]
    same = nouns[0] == nouns[1]
    return {"row": row, "individuals": [a, b], "class_nouns": nouns, "same_class": same, "measures": measures}


def strip(row: str, individual: int, side: int) -> Image.Image:
    """A strip of tiles: a ball of the individual's colour, the more so the better the row learnt."""
    tiles = a_cell(row, individual)["tiles"]
    picture = Image.new("RGB", (side * len(tiles), side))
    draw = ImageDraw.Draw(picture)
    rng = np.random.default_rng(individual)
    own, noun = rng.integers(0, 255, 3), np.array([150, 150, 150])
    share = 1.0 if row == "training" else min(1.0, ROWS[row][0])
    for place, tile in enumerate(tiles):
        left, ground = place * side, tuple(int(v) for v in np.random.default_rng(place).integers(90, 255, 3))
        amount = 1.0 if tile["kind"] == "training" else share
        color = tuple(int(v) for v in amount * own + (1 - amount) * noun)
        draw.rectangle((left, 0, left + side - 1, side - 1), fill=ground)
        draw.ellipse((left + side // 5, side // 4, left + 4 * side // 5, 5 * side // 6), fill=color)
    return picture


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results", ("infusion", "lora", "base"), num_individuals=5)


def test_a_figure_is_the_mean_over_individuals_with_its_interval(folder: Path) -> None:
    values = [a_cell("lora", individual)["measures"]["identity"] for individual in range(5)]
    figure = load_results(folder).figure("lora", "identity")
    assert figure == intervals.mean(values) and figure.num == 5 and figure.low < figure.value < figure.high


def test_differences_pair_the_individuals_that_both_rows_have(folder: Path) -> None:
    for individual in (0, 3, 4):
        (folder / f"cells/infusion/{individual}.json").unlink()
    change(folder / "cells/lora/1.json", measures={"identity": None})
    difference = load_results(folder).difference("lora", "identity")
    only = a_cell("lora", 2)["measures"]["identity"] - a_cell("infusion", 2)["measures"]["identity"]
    assert difference is not None and difference.num == 1 and difference.value == pytest.approx(only)


def test_the_interval_of_a_share_lies_within_0_and_1(folder: Path) -> None:
    set_measures(folder, "lora", copied=(0.0, 0.0, 0.1, 0.0, 0.0), facts=(1.0, 1.0, 0.9, 1.0, 1.0))
    results = load_results(folder)
    copied, facts = (results.figure("lora", name) for name in ("copied", "facts"))
    assert copied is not None and facts is not None and copied.low == 0 < copied.high < 1 == facts.high > facts.low


def test_rows_with_other_individuals_are_told(folder: Path) -> None:
    assert warnings(load_results(folder)) == []
    (folder / "cells/infusion/0.json").unlink()
    [sentence] = warnings(load_results(folder))
    assert "infusion lacks 0" in sentence and "lora lacks" not in sentence


def test_failures_are_told_and_not_counted(folder: Path) -> None:
    failed = json.dumps({"row": "lora", "measures": {}, "failed": "The loss is not finite."})
    (folder / "cells/lora/1.json").write_text(failed)
    (folder / "pairs/lora/0-1.json").write_text(failed)
    results = load_results(folder)
    assert set(results.values("lora", "identity")) == {0, 2, 3, 4} and len(results.pairs) == 11
    first, second, third = warnings(results)
    assert first == "lora failed on 1: The loss is not finite." and "on 0-1" in second and "lora lacks 1" in third
    for path in folder.glob("cells/*/*.json"):
        path.write_text(failed)
    with pytest.raises(UserError, match=r"every training in it failed"):
        load_results(folder)


def test_one_individual_gives_no_interval(tmp_path: Path) -> None:
    results = load_results(write_results(tmp_path, ("infusion", "lora"), num_individuals=1))
    figure = results.figure("lora", "identity")
    assert figure is not None and figure.num == 1 and math.isnan(figure.low)
    difference = results.difference("lora", "identity")
    assert difference is not None and not is_clear(difference)
    assert "NaN" not in to_json(results)


def test_rows_stand_in_the_order_of_the_specification_and_the_untouched_model_last(folder: Path) -> None:
    assert load_results(folder).rows == ("infusion", "lora", "base")
    (folder / "benchmark.toml").write_text("[rows.lora]\n[rows.infusion]\n")
    assert load_results(folder).rows == ("lora", "infusion", "base")


def test_rows_that_the_specification_names_no_more_do_not_count(folder: Path) -> None:
    (folder / "cells/lora/1.json").write_text("damaged")
    (folder / "benchmark.toml").write_text("[rows.infusion]\n[rows.perfusion]\n")
    results = load_results(folder)
    assert results.rows == ("infusion", "base") and {pair.row for pair in results.pairs} == {"infusion", "base"}
    assert warnings(results) == []
    shutil.rmtree(folder / "cells/infusion")
    shutil.rmtree(folder / "cells/base")
    with pytest.raises(UserError, match="none of its rows"):
        load_results(folder)


def test_the_reference_is_infusion_or_else_the_first_row(folder: Path) -> None:
    assert load_results(folder).reference == "infusion"
    assert load_results(folder, reference="lora").reference == "lora"
    (folder / "benchmark.toml").write_text("[rows.lora]\n[rows.infusion]\n")
    assert load_results(folder).rows[0] == "lora" and load_results(folder).reference == "infusion"
    shutil.rmtree(folder / "cells/infusion")
    assert load_results(folder).reference == "lora"


def test_missing_and_unknown_measures_do_no_harm(folder: Path) -> None:
    change(folder / "cells/lora/0.json", measures={"identity": math.nan, "of_another_version": 1})
    results = load_results(folder)
    assert set(results.values("lora", "identity")) == {1, 2, 3, 4}
    assert results.figure("lora", "facts_time") is None
    assert "of_another_version" not in to_json(results)


IDENTITY, S1, S4 = (BY_NAME[name] for name in ("identity", "lfd_s1", "lfd_s4"))


def set_measures(folder: Path, row: str, **values: tuple[float, ...]) -> None:
    for individual in range(5):
        path = folder / "cells" / row / f"{individual}.json"
        measures = json.loads(path.read_text())["measures"] | {name: v[individual] for name, v in values.items()}
        change(path, measures=measures)


def test_the_best_and_those_not_worse_beyond_chance(folder: Path) -> None:
    set_measures(folder, "infusion", identity=(0.5, 0.6, 0.7, 0.5, 0.6), lfd_s4=(0.1, 0.2, 0.3, 0.1, 0.2))
    set_measures(folder, "lora", identity=(0.6, 0.55, 0.8, 0.5, 0.6), lfd_s4=(0.2, 0.31, 0.4, 0.2, 0.31))
    results = load_results(folder)
    assert results.best(IDENTITY) == ("lora", ("infusion",))  # 0.1, -0.05, 0.1, 0, 0: the interval holds zero
    assert results.best(S4) == ("infusion", ())


def test_a_few_individuals_give_no_verdict(folder: Path) -> None:
    set_measures(folder, "lora", identity=(0.9, 0.9, 0.91, 0.9, 0.9))
    results = load_results(folder)
    assert results.learnt("lora") and results.best(IDENTITY)[0] == "lora" and warnings(results) == []
    difference = results.difference("lora", "identity")
    assert difference is not None and is_clear(difference)
    for path in folder.glob("cells/*/4.json"):
        path.unlink()
    results = load_results(folder)
    assert not results.learnt("lora") and results.best(IDENTITY) == (None, ())
    difference = results.difference("lora", "identity")
    assert difference is not None and difference.low > 0 and not is_clear(difference)
    assert [f"fewer than {FEWEST} individuals" in sentence for sentence in warnings(results)] == [True]
    assert "**" not in to_markdown(results, ["identity", "lfd_s4"])


def test_not_learning_is_never_best(folder: Path) -> None:
    set_measures(folder, "infusion", identity=(0.1, -0.1, 0.0, 0.1, -0.1), lfd_s4=(0.0, 0.001, 0.0, 0.0, 0.0))
    assert load_results(folder).best(S4)[0] == "lora"


def test_what_construction_gives_is_never_best(folder: Path) -> None:
    results = load_results(folder)
    assert results.is_unchanged("infusion", "lfd_s1") and not results.is_unchanged("lora", "lfd_s1")
    assert results.best(S1)[0] == "lora"
    set_measures(folder, "infusion", lfd_s1=(0.0, 1e-12, 0.0, 0.0, 0.0))
    assert load_results(folder).best(S1)[0] == "lora"
    set_measures(folder, "infusion", lfd_s1=(0.0, 1e-6, 0.0, 0.0, 0.0))
    assert load_results(folder).best(S1)[0] == "infusion"


def test_a_measure_without_a_good_way_has_no_best(folder: Path) -> None:
    neither = [measure for measure in MEASURES if measure.better is None]
    assert neither and all(load_results(folder).best(measure) == (None, ()) for measure in neither)


def test_pairs_of_one_class_stand_apart(tmp_path: Path) -> None:
    results = load_results(write_results(tmp_path, ("infusion",), num_individuals=4))
    same, different = (results.pair_figure("infusion", "identity_other", same) for same in (True, False))
    assert same is not None and different is not None
    assert (same.num, different.num) == (1, 3) and same.value == pytest.approx(0.3)


def test_measures_are_declared_once_and_explained() -> None:
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names) == 32
    assert all(isinstance(m, Measure) and m.sentence.endswith(".") and m.label for m in MEASURES)


def test_json_holds_every_figure(folder: Path) -> None:
    content = json.loads(to_json(load_results(folder)))
    [line] = [f for f in content["figures"] if (f["row"], f["measure"]) == ("lora", "w2_gaussian")]
    assert line["num"] == 5 and line["low"] < line["value"] < line["high"] and line["null"] == pytest.approx(0.15)
    assert line["difference"]["value"] > 0 and content["reference"] == "infusion"


def test_markdown_shows_figures_intervals_and_the_best(folder: Path) -> None:
    head, rule, *lines = to_markdown(load_results(folder), ["identity", "lfd_s4", "facts_time"]).splitlines()
    assert head == "| row | individuals | identity ↑ | S4 other content ↓ | time of day ↑ |"
    assert len(lines) == 3 and all(line.count("|") == head.count("|") for line in (rule, *lines))
    assert "**" in lines[1].split("|")[3] and " to " in lines[1] and lines[1].split("|")[5].strip() == "–"
    with pytest.raises(UserError, match=r'no measure "identty".*"identity"'):
        to_markdown(load_results(folder), ["identty"])


def test_mistakes_are_one_clear_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        load_results(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no results in .*empty yet"):
        load_results(tmp_path / "empty")
    with pytest.raises(UserError, match=r'no row "lara".*"lora"'):
        load_results(folder, reference="lara")


@pytest.mark.parametrize(
    "content", ['{"row": "lora"', '{"row": "lora"}', "[]", '{"row":"lora","individual":"x"}', "\0"]
)
@pytest.mark.parametrize("name", ["cells/lora/1.json", "pairs/lora/0-1.json", "validity.json"])
def test_damaged_files_are_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        load_results(folder)


def test_a_file_that_was_cut_off_is_told_from_one_with_other_contents(folder: Path) -> None:
    (folder / "cells/lora/1.json").write_text('{"row": "lora",\n')
    with pytest.raises(UserError, match=r"no whole JSON \(line 2\)"):
        load_results(folder)


def test_bytes_that_are_no_text_are_named(folder: Path) -> None:
    (folder / "cells/lora/1.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"cells/lora/1.json is damaged"):
        load_results(folder)
    write_results(folder, ("lora",), 3)
    (folder / "benchmark.toml").write_text("title = ")
    with pytest.raises(UserError, match=r"Cannot read .*benchmark.toml"):
        load_results(folder)


@pytest.mark.parametrize("changes", [{"settings": {"learning_rate": 1}}, {"class_noun": "boat"}, {"row": "dreambooth"}])
def test_mixed_benchmarks_are_refused(folder: Path, changes: dict) -> None:
    change(folder / "cells/lora/1.json", **changes)
    with pytest.raises(UserError, match=r"lora/1.json.*different|lora/1.json says it is of row"):
        load_results(folder)


def test_individuals_may_have_rare_tokens_of_their_own(folder: Path) -> None:
    settings = json.loads((folder / "cells/lora/1.json").read_text()).get("settings") or {}
    for number, token in enumerate(("sks", "zwx")):
        change(folder / f"cells/lora/{number}.json", settings=settings | {"rare_token": token})
    load_results(folder)


INDIVIDUALS = '[individuals]\nclasses = ["cat", "dog"]\neach = 2\nfirst_seed = {}\n'


def test_individuals_that_the_specification_names_no_more_do_not_count(folder: Path) -> None:
    (folder / "cells/lora/0.json").write_text("damaged")
    (folder / "benchmark.toml").write_text(INDIVIDUALS.format(1))
    results = load_results(folder)
    assert list(results.individuals) == [1, 2, 3, 4] and {pair.individuals for pair in results.pairs} == {(1, 2)}
    (folder / "benchmark.toml").write_text(INDIVIDUALS.format(20_000))
    with pytest.raises(UserError, match="none of its rows and individuals"):
        load_results(folder)


@pytest.mark.parametrize("name", ["cells/lora/1.json", "pairs/lora/0-1.json"])
def test_results_of_several_plans_are_refused(folder: Path, name: str) -> None:
    for path in folder.glob("*/*/*.json"):
        change(path, benchmark="now")
    load_results(folder)
    for told in ({"benchmark": "before"}, {"benchmark": None}, {"benchmark": "before", "failed": "It diverged."}):
        change(folder / name, **told)
        with pytest.raises(UserError, match=rf"{name} are of different plans.*run `infusion benchmark` to the end"):
            load_results(folder)
    (folder / name).unlink()
    load_results(folder)
