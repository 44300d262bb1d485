import base64
import io
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_results import NOUNS, SHOWN, change, write_results

from infusion.benchmark.page import render_comparison, write_comparison
from infusion.benchmark.results import load_results
from infusion.errors import UserError
from infusion.metrics.catalogue import MEASURES, NOTES, PAIR_MEASURES
from infusion.metrics.metric import AGNOSTIC, SPECIFIC
from infusion.pages.plots import OVERFITTING

ROWS = ("infusion", "infusion_more_steps", "lora", "dreambooth", "base", "null")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("made"), ROWS, num_individuals=6)


@pytest.fixture(scope="module")
def html(made: Path) -> str:
    return render_comparison(load_results(made))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_results(tmp_path / "small", ("infusion", "lora"), num_individuals=2)


def pictures_in(html: str) -> dict[str, np.ndarray]:
    """Alt text -> the image; plots are not meant."""
    found = re.findall(r'<img src="data:image/\w+;base64,([^"]+)"[^>]*? alt="([^"]*)"', html)
    assert html.count("<img ") - html.count("<picture>") == len(found) == len({alt for _, alt in found})
    return {alt: np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")) for data, alt in found}


def section(html: str, heading: str) -> str:
    return next(part for part in html.split("<section") if f"<h2>{heading}</h2>" in part)


def line(part: str, row: str) -> str:
    """A row's line of the first table of a part of the page that has it."""
    return re.search(rf'<th scope="row">{row}</th>.*?</tr>', part, re.S)[0]  # type: ignore[index]


def test_page_is_self_contained(html: str) -> None:
    addresses = re.findall(r"""\s(?:src|srcset|href|action|data|poster)\s*=\s*["']?([^"'\s>]*)""", html)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "http:" not in html and "https:" not in html and "@import" not in html and "url(" not in html
    assert "<script" not in html and "default-src 'none'" in html


def test_everything_is_there_in_order(html: str) -> None:
    in_order = [
        "Made-up results",
        "4 methods compared on 6 individuals",
        "2 prompts × 3 seeds",
        "data:image/svg",
        "50.2 kB",
    ]
    in_order += ["12,480", "31.2 s", "By how much", "S3 class noun", "W2 exact", "by kind", "Of different classes"]
    in_order += ["Two of the same class", "Individual 0, a cat", "Worst and best cases", "number means", "✗ FAILED"]
    in_order += ["learning_rate = 0.01", "toy world", "arXiv 2404.14007"]
    body = html[html.index("<body>") :]
    places = [body.find(text) for text in in_order]
    assert -1 not in places and body.rindex("arXiv 2404.14007") > places[-2] and places[:-1] == sorted(places[:-1])


def test_numbers_that_mislead_are_shown_with_what_they_mean(html: str) -> None:
    agnostic = section(html, "What became of everything else")
    assert NOTES[AGNOSTIC] in agnostic and "exactly 0 by construction" in agnostic
    assert line(agnostic, "infusion").count("‡") == 5 and "‡" not in line(agnostic, "lora")
    specific = section(html, "What the concept brings along")
    assert NOTES[SPECIFIC] in specific
    assert "chance 0.150" in line(specific, "lora") and 'class="best"' not in line(specific, "base")


def test_differences_say_which_way_is_better(html: str) -> None:
    differences = section(html, "What each method gives and costs").split("By how much")[1]
    identity, *_, background = re.findall(r"<td.*?</td>", line(differences, "dreambooth"), re.S)
    assert ">+" in identity and "better" in identity and ">+" in background and "worse" in background
    assert '<th scope="row">infusion</th>' not in differences


def test_a_few_individuals_make_nothing_bold(small: Path) -> None:
    html = render_comparison(load_results(small))
    assert "With fewer than 5 individuals no row is called the best" in html
    assert 'class="best"' not in html and 'class="clear"' not in html and ">better<" not in html


def test_a_measure_that_nobody_measured_has_no_column(html: str, small: Path) -> None:
    assert "time of day" not in html
    change(small / "cells/lora/0.json", measures={})
    change(small / "cells/lora/1.json", measures={"identity": 0.5})
    facts = section(render_comparison(load_results(small)), "What of the prompt is in the image")
    assert line(facts, "lora").count("–") == 3


def test_what_is_in_the_files_is_escaped(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>\"'&"
    folder = write_results(tmp_path, ("infusion", "lora"), num_individuals=2)
    (folder / "benchmark.toml").write_text("title = '''" + evil + "'''")
    for path in folder.glob("cells/*/*.json"):
        tiles = [{"kind": kind, "prompt": evil, "seed": evil} for kind in ("grid", "best", "worst", "training")]
        change(path, method=evil, paper=evil, class_noun=evil, settings={evil: evil}, tiles=tiles)
        Image.new("RGB", (32, 8)).save(path.with_suffix(".webp"))
    html = render_comparison(load_results(folder))
    assert "<img src=x" not in html and html.count("onerror=alert(1)") > 10
    pictures_in(html)  # no attribute was broken out of


def test_pictures_of_a_column_have_one_prompt_and_one_seed(made: Path, html: str) -> None:
    """The base model's prompts have the class noun where the others have the placeholder."""
    strips = pictures_in(html)
    part = section(html, "The same prompts and seeds")
    assert [f"a {NOUNS[0]} {where}" in part for where in SHOWN] == [True] * len(SHOWN)
    assert {alt.split(": ")[1] for alt in strips if "Individual" in alt} == {"training images", *ROWS} - {"null"}
    stored = Image.open(made / "cells/lora/0.webp").convert("RGB")
    for i in range(len(SHOWN)):
        tile = stored.crop(((3 + i) * 8, 0, (4 + i) * 8, 8))  # three training images come first
        shown = strips["Individual 0, a cat: lora"][:, 9 * i : 9 * i + 8, :3]
        assert (shown == np.asarray(tile)).all()


def test_a_picture_that_is_not_there_leaves_its_place_clear(small: Path) -> None:
    path = small / "cells/lora/0.json"
    tiles = load_results(small).cells["lora"][0].tiles
    kept = [{"kind": t.kind, "prompt": t.prompt, "seed": 6 if "snow" in t.prompt else t.seed} for t in tiles]
    change(path, tiles=kept)
    alpha = pictures_in(render_comparison(load_results(small)))["Individual 0, a cat: lora"][..., 3]
    assert [bool(alpha[:, 9 * i : 9 * i + 8].all()) for i in range(len(SHOWN))] == [True, False] + [True] * 4


def test_the_worst_are_shown_as_large_as_the_best(html: str) -> None:
    strips = pictures_in(html)
    assert strips["The worst cases of lora"].shape == strips["The best cases of lora"].shape
    part = section(html, "Worst and best cases")
    for words, ordered in (("worst", sorted), ("best", lambda scores: sorted(scores, reverse=True))):
        found = re.search(rf'alt="The {words} cases of lora">.*?</ol>', part, re.S)
        assert found is not None
        scores = [float(score) for score in re.findall(r"score ([\d.]+)", found[0])]
        assert len(scores) == 6 and scores == ordered(scores)
    assert "cases of base" not in part


def test_without_training_pictures_none_are_promised(small: Path) -> None:
    for path in small.glob("cells/*/*.json"):
        tiles = [{"kind": kind, "prompt": "a <c>", "seed": 0, "score": 1} for kind in ("grid", "best", "worst")]
        change(path, tiles=tiles)
        Image.new("RGB", (24, 8)).save(path.with_suffix(".webp"))
    html = render_comparison(load_results(small))
    assert "a training image of" not in html and pictures_in(html)["The best cases of lora"].shape[0] == 8


def test_prompts_and_seeds_are_counted_where_the_specification_has_them(small: Path) -> None:
    (small / "benchmark.toml").write_text('[[prompts]]\ntext = "a {}"\n[drawing]\nnum_seeds = 8\n')
    assert "1 prompt × 8 seeds" in render_comparison(load_results(small))


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_damaged_pictures_are_named(small: Path, damage: str) -> None:
    path = small / "cells/lora/1.webp"
    if damage == "cut":
        Image.new("RGB", (30, 8)).save(path)
    else:
        path.write_text("no image")
    with pytest.raises(UserError, match=r"lora/1.webp is .*damaged"):
        render_comparison(load_results(small))


def test_little_is_enough(tmp_path: Path) -> None:
    folder = write_results(tmp_path, ("lora",), num_individuals=1)
    (folder / "validity.json").unlink()
    (folder / "cells/lora/0.webp").unlink()
    for path in folder.glob("pairs/*/*"):
        path.unlink()
    html = render_comparison(load_results(folder))
    for heading in ("Fidelity against", "By how much", "Two concepts", "The same prompts", "Worst and", "valid?"):
        assert heading not in html
    assert "1 method compared on 1 individual (cat), beside nothing" in html and "nan" not in html


def test_plots_follow_the_page_into_the_dark(html: str) -> None:
    part = section(html, "Fidelity against overfitting")
    assert part.count("<picture>") == part.count("prefers-color-scheme: dark") == len(OVERFITTING)
    assert part.count("data:image/svg+xml;base64,") == 2 * len(OVERFITTING)
    assert 'alt="Identity against W2 layout' in part and "img-src data:" in html


def test_every_measure_on_the_page_is_explained(html: str) -> None:
    words = unescape(section(html, "What each number means"))
    measured = [measure for measure in (*MEASURES, *PAIR_MEASURES) if unescape(html).count(f">{measure.label}")]
    assert len(measured) > 25 and all(measure.sentence in words for measure in measured)


@pytest.mark.slow
def test_write_comparison_writes_what_it_renders(small: Path, tmp_path: Path) -> None:
    write_comparison(small, tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == render_comparison(load_results(small))
    with pytest.raises(UserError, match="no folder"):
        write_comparison(tmp_path / "nowhere", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
