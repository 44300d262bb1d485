"""What the measures say in words, on the page and in JSON."""

import base64
import io
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageStat

from infusion.audit_page import render_audit, write_audit
from infusion.evaluation import Drawing, Drawn, Evaluation, Plan, Wanted
from infusion.intervals import Figure
from infusion.measures import NOTES
from infusion.verdict import Audited, answers, to_json

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
QUESTIONS = ("learnt", "followed", "leaked", "moved", "confined", "copied")


def evaluated(pictures: bool = True, base_facts: float = 0.9, **changed: Figure | None) -> Audited:
    """An evaluation with some of its measures changed, or left out."""
    measures = {name: figure for name, figure in (MEASURED | changed).items() if figure}
    if not pictures:
        measures = {k: v for k, v in measures.items() if k not in ("identity", "copied", "collapse", "class_leak")}
    images = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 8, 8)
    base = MEASURED | {"identity": Figure(2.8e-8, 0, 0, 2), "facts": Figure(base_facts, base_facts, base_facts, 2)}
    return Audited(
        name="my-cat",
        about={
            "concept_name": "my-cat",
            "class_noun": "cat",
            "method": "infusion",
            "paper": "arXiv 2404.14007",
            "settings": {"layers": "all"},
            "training": {"max_train_steps": 60},
            "base": {"id": "toybox", "fingerprint": "abc"},
        },
        file_name="my-cat.safetensors",
        file_bytes=5384,
        num_parameters=768,
        base="toybox",
        plan=Plan((Wanted("a {} & co", {}), Wanted("a {} there", {})), ("a te",), ("a dog",), Drawing(num_seeds=2)),
        own=Evaluation(measures, Drawn(images, images, 0.1), torch.tensor([0.9, 0.1, 0.5, 0.7])),
        untouched=Evaluation(base, Drawn(images.flip(0), images), torch.zeros(4)),
        nulls={"w2_background": 0.25, "w2_layout": 0.25, "w2_style": 0.25},
        training=[Image.new("RGB", (8, 8), "red")] * 2 if pictures else [],
        witnesses={"clip": "toybox-b", "encoder": "toybox-b", "judges": "b"},
        seconds=61.0,
    )


def words(found: Audited) -> dict[str, str]:
    return dict(zip(QUESTIONS, (answer.word for answer in answers(found)), strict=True))


def sentence(found: Audited, question: str) -> str:
    return answers(found)[QUESTIONS.index(question)].sentence


def test_a_concept_that_is_learnt_and_breaks_nothing():
    assert words(evaluated()) == {
        "learnt": "Yes",
        "followed": "Yes",
        "leaked": "No",
        "moved": "Only around the concept",
        "confined": "As far as can be seen",
        "copied": "None seen",
    }
    assert "0.600 (0.500 to 0.700)" in sentence(evaluated(), "learnt")
    assert "S2 is 0, S3 is 0." in sentence(evaluated(), "leaked")
    assert "S1 is 0; around the concept, outside the subject, predictions moved by 2.00%" in sentence(
        evaluated(), "moved"
    )
    unmoved = Figure(0.0, 0.0, 0.0, 2)
    assert words(evaluated(lfd_s4=unmoved, lfd_s4_relative=unmoved))["moved"] == "No"
    shown = (
        "As far as these pictures show, background, layout and style differ no more from the base model’s than one draw"
    )
    assert sentence(evaluated(), "confined").startswith(shown)


def test_no_copy_among_a_few_pictures_rules_out_little():
    """Wilson's upper end of 0 of 4."""
    assert "None of the 4 pictures" in sentence(evaluated(), "copied")
    assert "cannot rule out that up to 49%" in sentence(evaluated(), "copied")


@pytest.mark.parametrize(
    ("figure", "word"),
    [
        (Figure(1.3, 1.1, 1.5, 2), "More than learnt"),
        (Figure(0.2, -0.1, 0.4, 2), "Cannot tell"),
        (Figure(-0.2, -0.3, -0.1, 2), "No"),
        (Figure(math.nan, math.nan, math.nan, 2), "Not measured"),
    ],
)
def test_identity_is_read_on_its_scale(figure, word):
    assert words(evaluated(identity=figure))["learnt"] == word


def test_prompts_are_held_against_the_base_models_own():
    assert words(evaluated(base_facts=0.94))["followed"] == "Yes", "its interval reaches that"
    for wide in (Figure(0.45, 0.2, 0.92, 2), Figure(0.9, math.nan, math.nan, 1)):
        assert words(evaluated(facts=wide))["followed"] == "Cannot tell"
    assert "45% (20% to 92%)" in sentence(evaluated(facts=Figure(0.45, 0.2, 0.92, 2)), "followed")
    assert "90% (70% to 100%)" in sentence(evaluated(facts=Figure(0.9, 0.7, 1.1, 2)), "followed")
    assert words(evaluated(facts=Figure(0.5, 0.4, 0.6, 2)))["followed"] == "Less than before"
    unjudged = evaluated(facts=None, facts_color=None)
    assert "cosine of 0.300 (0.290 to 0.310); the base model’s" in sentence(unjudged, "followed")


def test_what_broke_is_said():
    moved = Figure(0.04, 0.03, 0.05, 2)
    far, near = Figure(15.3, 10, 20, 2), Figure(0.5, 0.4, 0.6, 2)
    broken = evaluated(
        lfd_s1=moved, lfd_s2=moved, lfd_s3=moved, lfd_s1_relative=near, lfd_s2_relative=far, lfd_s3_relative=far
    )
    assert words(broken)["moved"] == "Yes" and words(broken)["leaked"] == "No sign"
    assert "moved by 50.0% of what" in sentence(broken, "moved") and "15.3 times that" in sentence(broken, "leaked")
    for name, figure in (("class_leak", near), ("class_diversity", near)):
        leaked = replace(broken, own=replace(broken.own, measures=broken.own.measures | {name: figure}))
        assert words(leaked)["leaked"] == "Yes"
    beyond = evaluated(w2_background=Figure(0.5, 0.4, 0.6, 2), w2_style=Figure(0.5, 0.4, 0.6, 2))
    assert sentence(beyond, "confined").startswith("Background and style differ from the base model’s by more")
    assert words(evaluated(copied=Figure(0.3, 0.1, 0.5, 2)))["copied"] == "Yes"
    assert words(evaluated(copied=Figure(0.1, 0.0, 0.3, 2)))["copied"] == "A few may be"


def test_pictures_that_make_no_scale_are_told_from_none():
    alike = evaluated(identity=None, class_leak=None)
    assert words(alike)["learnt"] == "Not measured" and "too alike to make a scale" in sentence(alike, "learnt")
    html = render_audit(alike)
    assert "too alike to make a scale" in html and "None were given" not in html and "mean of identity" not in html
    parts = {f"w2_{part}": None for part in ("background", "layout", "style")}
    assert words(evaluated(**parts))["confined"] == "Not measured"
    assert "background differs no more" in sentence(
        evaluated(**parts | {"w2_background": MEASURED["w2_background"]}), "confined"
    )


def test_without_pictures_the_page_says_what_they_would_add():
    found = evaluated(pictures=False)
    assert words(found)["learnt"] == words(found)["copied"] == "Not measured"
    assert "--pictures FOLDER" in sentence(found, "learnt")
    html = render_audit(found)
    assert "adds whether it was learnt" in html and "Real picture 1" not in html
    assert json.loads(to_json([found]))["audits"][0]["num_pictures"] == 0


def test_the_page_is_one_file_and_escapes_what_is_typed():
    html = render_audit(evaluated())
    addresses = re.findall(r"""\s(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]*)""", html)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html and "default-src 'none'" in html
    assert "<my-cat>" not in html and "&lt;my-cat&gt;" in html and "</mark> &amp; co" in html


def test_every_figure_is_on_the_page_with_what_it_is_held_against():
    html = render_audit(evaluated())
    assert "base model 0, real pictures 1" in html and "other seeds 0.250" in html and "0.100 to 0.300" in html
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
    worst_best = [("1", "0.10"), ("0", "0.50"), ("0", "0.90"), ("1", "0.70")]
    assert scores == [*worst_best, ("0", "0.90"), ("0", "0.50")]
    assert html.index("Worst") < html.index("Best 1")
    base, own = (_brightness(html, f"Worst 1, {whose}") for whose in ("base model", "customized"))
    assert base == pytest.approx(2 / 3, abs=0.01) and own == pytest.approx(1 / 3, abs=0.01)


def _brightness(html: str, alt: str) -> float:
    data = re.search(rf'base64,([^"]+)"[^>]* alt="{alt}', html)
    assert data
    return ImageStat.Stat(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("L")).mean[0] / 255


def test_json_has_every_figure():
    found = evaluated(identity=Figure(math.nan, math.nan, math.nan, 2))
    whole = json.loads(to_json([found]))
    told = whole["audits"][0]
    assert told["measures"].keys() == MEASURED.keys() and told["measures"]["identity"]["value"] is None
    assert told["measures"]["w2_style"] == {
        "value": 0.2,
        "low": 0.1,
        "high": 0.3,
        "num": 2,
        "base": 0.2,
        "null": 0.25,
        "better": "lower",
        "sentence": told["measures"]["w2_style"]["sentence"],
    }
    assert told["seeds"] == [0, 1] and told["plan"]["drawing"]["num_seeds"] == 2 and "torch" in whole["versions"]
    assert told["adapter"]["settings"] == {"layers": "all"} and len(told["answers"]) == 6


def test_the_page_is_written_whole(tmp_path):
    write_audit(evaluated(), tmp_path / "deep" / "page.html")
    assert (tmp_path / "deep" / "page.html").read_text().rstrip().endswith("</html>")
