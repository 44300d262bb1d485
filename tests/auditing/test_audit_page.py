"""The page of an audit, and that of several."""

import base64
import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageStat

from infusion.auditing.comparison_page import render_audits, unique_names
from infusion.auditing.page import render_audit, write_audit
from infusion.auditing.record import to_json
from infusion.auditing.result import AuditResult, Curve, Plain
from infusion.evaluation.evaluate import Drawn, Evaluation
from infusion.evaluation.plans import Drawing, Plan, Wanted
from infusion.intervals import Figure
from infusion.metrics.catalogue import NOTES
from infusion.metrics.copies import Nearest
from infusion.metrics.memorisation import recalled
from infusion.training.stopping import Check

UNMOVED = {f"lfd_s{n}{kind}": Figure(0.0, 0.0, 0.0, 2) for n in (1, 2, 3) for kind in ("", "_relative", "_kl")}
MEASURED = UNMOVED | {
    "identity": Figure(0.6, 0.5, 0.7, 2),
    "image_alignment": Figure(0.8, 0.7, 0.9, 2),
    "facts": Figure(0.9, 0.85, 0.95, 2),
    "facts_color": Figure(0.5, 0.4, 0.6, 2),
    "text_alignment": Figure(0.3, 0.29, 0.31, 2),
    "class_leak": Figure(0.0, 0.0, 0.0, 8),
    "class_diversity": Figure(1.0, 1.0, 1.0, 8),
    "lfd_s4": Figure(2e-5, 1e-5, 3e-5, 2),
    "lfd_s4_relative": Figure(0.02, 0.01, 0.03, 2),
    "w2_background": Figure(0.2, 0.1, 0.3, 2),
    "w2_layout": Figure(0.2, 0.1, 0.3, 2),
    "w2_style": Figure(0.2, 0.1, 0.3, 2),
    "collapse": Figure(0.9, 0.8, 1.0, 2),
    "copied": Figure(0.0, 0.0, 0.0, 2),
}


CHANCES = {"w2_background": 0.4, "w2_layout": 0.4, "w2_style": 0.4}


def evaluated(
    pictures: bool = True, base_facts: float = 0.9, chances: Mapping[str, float] = CHANCES, **changed: Figure | None
) -> AuditResult:
    """An evaluation with some of its measures changed, or left out."""
    measures = {name: figure for name, figure in (MEASURED | changed).items() if figure}
    if not pictures:
        measures = {k: v for k, v in measures.items() if k not in ("identity", "copied", "collapse", "class_leak")}
    images = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 8, 8)
    base = MEASURED | {
        "lfd_s4": Figure(0.0, 0.0, 0.0, 2),
        "identity": Figure(2.8e-8, 0, 0, 2),
        "facts": Figure(base_facts, base_facts, base_facts, 2),
    }
    return AuditResult(
        name="my-cat",
        about={
            "concept_name": "my-cat",
            "class_noun": "cat",
            "method": "infusion",
            "paper": "arXiv 2404.14007",
            "strength": 1.0,
            "settings": {"layers": "all"},
            "training": {"max_train_steps": 60},
            "base": {"id": "toybox", "fingerprint": "abc"},
        },
        file_name="my-cat.safetensors",
        file_bytes=5384,
        num_parameters=768,
        base="toybox",
        plan=Plan((Wanted("a {} & co", {}), Wanted("a {} there", {})), ("a te",), ("a dog",), Drawing(num_seeds=2)),
        own=Evaluation(
            measures,
            Drawn(images, images, 0.1),
            followed=torch.full([4], facts.value if (facts := measures.get("facts")) else 0.3),
            score=torch.tensor([0.9, 0.1, 0.5, 0.7]),
            chances=chances,
        ),
        untouched=Evaluation(base, Drawn(images.flip(0), images), torch.full([4], base_facts), torch.zeros(4), CHANCES),
        recalled=Plain(images, recalled(images, images[[0, 3]])) if pictures else None,
        nulls={"w2_background": 0.25, "w2_layout": 0.25, "w2_style": 0.25},
        training=[Image.new("RGB", (8, 8), "red")] * 2 if pictures else [],
        evaluators={"clip": "toybox-b", "encoder": "toybox-b", "judges": "b"},
        seconds=61.0,
    )


def test_without_pictures_the_page_says_what_they_would_add():
    found = evaluated(pictures=False)
    html = render_audit(found)
    assert "adds whether it was learnt" in html and "Real image 1" not in html
    assert json.loads(to_json([found]))["audits"][0]["num_pictures"] == 0


def test_the_page_is_one_file_and_escapes_what_is_typed():
    html = render_audit(evaluated())
    addresses = re.findall(r"""\s(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]*)""", html)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html and "default-src 'none'" in html
    assert "<my-cat>" not in html and "&lt;my-cat&gt;" in html and "</mark> &amp; co" in html


def test_every_figure_is_on_the_page_with_what_it_is_held_against():
    html = render_audit(evaluated())
    assert "base model 0, real images 1" in html and "other seeds 0.250, p\u00a0=\u00a00.4000" in html
    assert "0.100 to 0.300" in html
    assert (
        html.count('<dl class="measured">') == 7
        and all(note in html for note in NOTES.values())
        and "our definition of" in html
    )
    assert re.search(r"<dt>color ↑<small>Share of prompts whose color judges see", html)
    for told in ("5,384 bytes", "768", "arXiv 2404.14007", "max_train_steps", "1 min 1 s", "a te", "a dog"):
        assert told in html


def test_pictures_stand_worst_first_then_best():
    html = render_audit(evaluated())
    scores = re.findall(r"seed (\d), score ([\d.]+)", html)
    worst_best = [("1", "0.10"), ("2", "0.50"), ("0", "0.90"), ("3", "0.70")]
    assert scores == [*worst_best, ("0", "0.90"), ("2", "0.50")]
    assert html.index("Worst") < html.index("Best 1")
    base, own = (_brightness(html, f"Worst 1, {whose}") for whose in ("base model", "customized"))
    assert base == pytest.approx(2 / 3, abs=0.01) and own == pytest.approx(1 / 3, abs=0.01)


def _brightness(html: str, alt: str) -> float:
    data = re.search(rf'base64,([^"]+)"[^>]* alt="{alt}', html)
    assert data
    return ImageStat.Stat(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("L")).mean[0] / 255


def test_the_page_is_written_whole(tmp_path):
    write_audit(evaluated(), tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").read_text().rstrip().endswith("</html>")


def test_several_audits_stand_in_one_table_with_their_pages():
    other = replace(evaluated(identity=Figure(0.2, 0.1, 0.3, 2)), name="other <b>")
    html = render_audits([evaluated(), other], ["1.html", "2.html"])
    assert '<a href="1.html">my-cat</a>' in html and '<a href="2.html">other &lt;b&gt;</a>' in html
    assert "2 customizations of" in html and "0.200 (0.100 to 0.300)" in html and "Keep step" not in html
    assert html.count('alt="base model: a &lt;cat&gt;') == 2 and "http" not in html.replace("http-equiv", "")
    assert html.count("Identity against") == 4, "a plot for each overfitting, light and dark in one"


def test_names_that_are_alike_are_numbered():
    assert unique_names([evaluated(), evaluated(), replace(evaluated(), name="b")]) == [
        "1. my-cat",
        "2. my-cat",
        "3. b",
    ]


def test_a_name_that_would_hide_the_base_model_or_leave_a_plot_is_another():
    assert unique_names([replace(evaluated(), name="base")]) == ["1. base"]
    assert unique_names([replace(evaluated(), name="_lora")]) == ["lora"]


@pytest.mark.slow
def test_of_a_run_the_curve_is_drawn_and_the_step_to_keep_is_told():
    checks = [Check(50, 0.2, 0.9, 0.1), Check(100, 0.6, 0.8, 0.1), Check(150, 0.7, 0.3, 0.1)]
    html = render_audits([evaluated(), evaluated()], ["1.html", "2.html"], Curve(checks, checks[1]))
    assert "Keep step 100" in html and "step, 150, is measured beside it" in html
    assert "over 3 checkpoints; the one to keep is step 100" in html


def test_the_nearest_pictures_stand_beside_what_they_are_like():
    found = evaluated()
    near = Nearest(torch.tensor([0, 1, 1, 0]), torch.tensor([0.5, 0.9, 0.99, 0.7]))
    html = render_audit(replace(found, own=replace(found.own, nearest=near, never_nearer=0.95)))
    assert "1 of 4 images are beyond 0.950" in html and html.count("<strong>copied</strong>") == 1 + 4
    assert html.index("likeness 0.990") < html.index("likeness 0.900") < html.index("likeness 0.500")
    assert "Nearest to a training image" not in render_audit(found)


def test_what_is_drawn_from_the_words_alone_stands_beside_what_it_repeats():
    found = evaluated()
    html = render_audit(found)
    assert "From its words alone" in html and "4 of 4 are nearer than 0.500 to a training image" in html
    assert "From its words alone" not in render_audit(evaluated(pictures=False))
    assert found.recalled is not None
    apart = found.recalled.found._replace(distance=torch.tensor([0.3, 0.1, 0.4, 0.2]))
    html = render_audit(replace(found, recalled=found.recalled._replace(found=apart)))
    assert re.findall(r"distance ([\d.]+)", html) == ["0.100", "0.200", "0.300", "0.400"]
