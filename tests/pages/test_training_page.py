import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infusion.pages import training_page as report
from infusion.pages.training_page import Comparison, Page, Preview, TrainingImage, Untouched, render_page, write_page


def picture(shade: int, side: int = 8) -> Image.Image:
    """An image that can be told from every other one by its shade."""
    return Image.new("RGB", (side, side), (shade, 255 - shade, 40))


def a_page(**changes: object) -> Page:
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 4, 8))
    page = Page(
        placeholder="<my-cat>",
        class_noun="cat",
        statement="Learnt & done.",
        training_images=[
            TrainingImage(picture(1), mask, "given", 0.5),
            TrainingImage(picture(2), None, "none", 1.0),
        ],
        comparisons=[
            Comparison(f"a <my-cat> in place {i}", (3, 4), [picture(10 + i), picture(20 + i)], [picture(30 + i)] * 2)
            for i in range(8)
        ],
        untouched=[Untouched("a red car", 7, picture(40), picture(40), 0.0)],
        facts={"file size": "9,412 bytes"},
        settings={"learning_rate": "0.006"},
        notes=["One vector per layer."],
        loss_curve=[(1, 0.4), (2, 0.3), (3, 0.1)],
        previews=[Preview(50, [picture(50)]), Preview(100, [picture(60)])],
    )
    return dataclasses.replace(page, **changes)  # type: ignore[arg-type]


def pictures_in(html: str) -> list[tuple[str, Image.Image]]:
    """The (alt text, image) of every image of a page, in order."""
    found = re.findall(r'<img src="data:image/\w+;base64,([^"]+)"[^>]*? alt="([^"]*)"', html)
    return [(alt, Image.open(io.BytesIO(base64.b64decode(data)))) for data, alt in found]


def test_page_is_self_contained() -> None:
    html = render_page(a_page())
    addresses = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]*)""", html)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "http:" not in html and "https:" not in html and "@import" not in html and "url(" not in html
    assert "<script" not in html


def test_everything_is_there_in_order() -> None:
    html = render_page(a_page())
    in_order = [
        "&lt;my-cat&gt;</mark> in place 0",
        "in place 7",
        "a red car",
        "0 (bit-identical)",
        "<polyline",
    ]
    in_order = ["one particular cat", "Learnt &amp; done.", "mask given, 50%", "no mask", *in_order]
    in_order += ["step 50", "step 100", "9,412 bytes", "learning_rate", "0.006", "One vector per layer."]
    body = html[html.index("<body>") :]
    places = [body.index(text) for text in in_order]
    assert places == sorted(places)


def test_what_people_typed_is_escaped_everywhere() -> None:
    evil = "<img src=x onerror=alert(1)>\"'&"
    page = a_page(
        placeholder=evil,
        class_noun=evil,
        statement=evil,
        training_images=[TrainingImage(picture(1), None, evil, 1.0)],
        comparisons=[Comparison(evil, (0,), [picture(1)], [picture(2)])],
        untouched=[Untouched(evil, 0, picture(1), picture(1), 0.0, evil)],
        facts={evil: evil},
        settings={evil: evil},
        notes=[evil],
    )
    html = render_page(page)
    assert "<img src=x" not in html
    assert '">"' not in html and html.count("onerror=alert(1)") > 10
    assert len(pictures_in(html)) == html.count("<img ")  # no attribute was broken out of


def test_pictures_are_paired_by_seed_and_stored_exactly() -> None:
    base, customized = [picture(100), picture(101)], [picture(110), picture(111)]
    html = render_page(a_page(comparisons=[Comparison("a <my-cat>", (5, 6), base, customized)]))
    shown = [(alt, image.convert("RGB")) for alt, image in pictures_in(html) if "&lt;my-cat&gt;" in alt]
    assert [alt.split(":")[0] for alt, _ in shown] == [
        "Base model, seed 5",
        "Customized, seed 5",
        "Base model, seed 6",
        "Customized, seed 6",
    ]
    expected = [base[0], customized[0], base[1], customized[1]]
    assert [image.tobytes() for _, image in shown] == [image.tobytes() for image in expected]


def test_every_seed_is_shown_however_many_there_are() -> None:
    pictures = [picture(i) for i in range(7)]
    html = render_page(a_page(comparisons=[Comparison("p", range(7), pictures, pictures)]))
    assert re.findall(r'class="seed">seed (\d)', html) == list("0123456")


def test_large_pictures_stay_small_files() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((512, 512))
    html = render_page(a_page(comparisons=[Comparison("p", (0,), [large], [large])]))
    assert "data:image/webp" in html and "data:image/webp" not in render_page(a_page())


def test_mask_shows_what_is_learnt() -> None:
    [cut_out] = [im for alt, im in pictures_in(render_page(a_page())) if "50% of it" in alt]
    alpha = np.asarray(cut_out)[..., 3]
    assert (alpha[:, :4] == 255).all() and (alpha[:, 4:] == 0).all()


def test_mask_of_another_size_is_fitted() -> None:
    shown = TrainingImage(picture(1, 8), Image.new("L", (3, 5), 255), "drawn by hand", 1.0)
    html = render_page(a_page(training_images=[shown]))
    assert [image.size for _, image in pictures_in(html)][:2] == [(8, 8), (8, 8)]
    assert "drawn by hand, 100%" in html


def test_every_picture_has_an_alt_text() -> None:
    html = render_page(a_page())
    assert html.count("<img ") == len(pictures_in(html)) and all(alt for alt, _ in pictures_in(html))


@pytest.mark.parametrize(("difference", "shown"), [(0.0, "0 (bit-identical)"), (0, "0 (bit-identical)")])
def test_only_zero_is_called_identical(difference: float, shown: str) -> None:
    row = Untouched("a red car", 7, picture(40), picture(40), difference)
    assert shown in render_page(a_page(untouched=[row]))


@pytest.mark.parametrize("difference", [1e-12, 0.25, float("nan")])
def test_a_difference_is_printed_as_given(difference: float) -> None:
    html = render_page(a_page(untouched=[Untouched("a red car", 7, picture(40), picture(40), difference)]))
    assert f"<strong>{difference}</strong>" in html and "≠" in html
    assert "bit-identical" not in html


def test_optional_parts_can_be_left_out() -> None:
    html = render_page(a_page(loss_curve=(), previews=(), notes=(), untouched=()))
    for heading in ("How it learnt", "On the way", "What it cannot do", "What it leaves alone"):
        assert heading not in html and heading in render_page(a_page())


def test_loss_curve_without_two_finite_values_is_left_out() -> None:
    nan = float("nan")
    assert "<polyline" not in render_page(a_page(loss_curve=[(1, 0.5), (2, nan), (3, float("inf"))]))
    assert "nan" not in render_page(a_page(loss_curve=[(1, 0.5), (2, nan), (3, 0.25)]))


@pytest.mark.parametrize("num_steps", [2, 7, 5000])
def test_loss_curve_fills_its_box(num_steps: int) -> None:
    plot = report._loss_plot([(step, 2.0 - step / num_steps) for step in range(1, num_steps + 1)])
    assert plot is not None
    for line in (plot.points, plot.trend):
        x, y = np.array([point.split(",") for point in line.split()], dtype=float).T
        assert len(x) <= 400 and x[0] <= 1 and x[-1] >= 99 and (np.diff(x) > 0).all()
        assert (y >= 0).all() and (y <= 100).all() and y[0] < y[-1]  # y grows downwards: the loss falls


@pytest.mark.parametrize(
    ("highest", "scale"), [(0.29, (0.3, 0.1)), (4.0, (4.0, 1.0)), (0.0, (1.0, 0.5)), (130, (150, 50))]
)
def test_axis_ends_just_above_the_highest_loss(highest: float, scale: tuple[float, float]) -> None:
    assert report._nice_scale(highest) == pytest.approx(scale)


def test_write_page_writes_what_it_renders(tmp_path: Path) -> None:
    page = a_page(settings={"a file name with undecodable bytes": "cat\udcff.png"})
    write_page(page, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == render_page(page).replace("\udcff", "?")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_describe_run_claims_only_what_was_measured() -> None:
    rows = a_page().untouched
    sentence = report.describe_run("teddy bear", 5, 300, 112.0, 1152, 9412, rows)
    assert "5 images of one teddy bear" in sentence and "300 training steps" in sentence
    assert "1 min 52 s" in sentence and "1,152 numbers" in sentence and "9,412 bytes" in sentence
    assert "bit for bit" in sentence
    changed = dataclasses.replace(rows[0], largest_difference=1e-9)
    for unproven in ((), (rows[0], changed)):
        assert "bit for bit" not in report.describe_run("cat", 1, 1, 0.5, 1, 1, unproven)
