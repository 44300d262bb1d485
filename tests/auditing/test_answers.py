"""What the measures say: in words, as a number for each axis, against limits, and in JSON."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_audit_page import CHANCES, MEASURED, evaluated

from infusion.auditing.answers import answers
from infusion.auditing.limits import AXES, Limit, axis_figure, parse_limit
from infusion.auditing.page import render_audit
from infusion.auditing.record import record_of, to_json
from infusion.auditing.result import AuditResult, Curve
from infusion.errors import UserError
from infusion.intervals import Figure
from infusion.pages.numbers import format_number
from infusion.sharing.audit_record import AuditRecord
from infusion.training.stopping import Check

QUESTIONS = ("learnt", "followed", "leaked", "moved", "confined", "copied")


def words(found: AuditResult) -> dict[str, str]:
    return dict(zip(QUESTIONS, (answer.word for answer in answers(found)), strict=True))


def sentence(found: AuditResult, question: str) -> str:
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
    shown = "As far as these images show, background, layout and style differ no more from the base model’s than other"
    assert sentence(evaluated(), "confined").startswith(shown)


def test_no_copy_among_a_few_pictures_rules_out_little():
    """Wilson's upper end of 0 of 4."""
    assert "None of the 4 images" in sentence(evaluated(), "copied")
    assert "cannot rule out that up to 49%" in sentence(evaluated(), "copied")


@pytest.mark.parametrize(
    ("figure", "word"),
    [
        (Figure(1.3, 1.1, 1.5, 2), "Overfitted"),
        (Figure(1.1, 0.9, 1.3, 2), "Yes"),
        (Figure(0.2, -0.1, 0.4, 2), "Inconclusive"),
        (Figure(-0.2, -0.3, -0.1, 2), "No"),
        (Figure(0.05, 0.01, 0.09, 2), "No"),
        (Figure(0.06, 0.01, 0.11, 2), "Yes"),
        (Figure(math.nan, math.nan, math.nan, 2), "Not measured"),
    ],
)
def test_identity_is_read_on_its_scale(figure, word):
    assert words(evaluated(identity=figure))["learnt"] == word


def test_prompts_are_held_against_the_base_models_own():
    assert words(evaluated(base_facts=0.94))["followed"] == "Yes", "its interval reaches that"
    less = Figure(0.8, 0.7, 0.85, 2)
    assert words(evaluated(facts=less))["followed"] == "Less than before"
    assert words(evaluated(facts=less, base_facts=0.8))["followed"] == "Inconclusive", "of the same images as many"
    assert "inconclusive" in sentence(evaluated(facts=less, base_facts=0.8), "followed")
    uneven = evaluated(facts=less)
    uneven = replace(uneven, own=replace(uneven.own, followed=torch.tensor([0.7, 0.7, 0.9, 0.9])))
    assert words(uneven)["followed"] == "Inconclusive", "one prompt may be less followed by chance"
    for wide in (Figure(0.45, 0.2, 0.92, 2), Figure(0.9, math.nan, math.nan, 1)):
        assert words(evaluated(facts=wide, base_facts=wide.value))["followed"] == "Inconclusive"
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
    rare = CHANCES | {"w2_background": 0.0025, "w2_style": 0.0075}
    beyond = evaluated(chances=rare)
    unlucky = replace(beyond, untouched=replace(beyond.untouched, chances=rare))
    assert words(unlucky)["confined"] == "As far as can be seen", "the base itself is as far from its other seeds"
    assert sentence(beyond, "confined").startswith("Background and style differ from the base model’s: chance")
    assert words(evaluated(copied=Figure(0.3, 0.1, 0.5, 2)))["copied"] == "Yes"
    assert words(evaluated(copied=Figure(0.1, 0.0, 0.3, 2)))["copied"] == "A few may be"


def test_pictures_that_make_no_scale_are_told_from_none():
    alike = evaluated(identity=None, class_leak=None)
    assert words(alike)["learnt"] == "Not measured" and "too alike to make a scale" in sentence(alike, "learnt")
    html = render_audit(alike)
    assert "too alike to make a scale" in html and "None were given" not in html and "mean of identity" not in html
    parts: dict[str, Any] = {f"w2_{part}": None for part in ("background", "layout", "style")}
    assert words(evaluated(**parts))["confined"] == "Not measured"
    assert "background differs no more" in sentence(
        evaluated(**parts | {"w2_background": MEASURED["w2_background"]}), "confined"
    )


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
        "chance": 0.4,
        "better": "lower",
        "sentence": told["measures"]["w2_style"]["sentence"],
    }
    assert told["seeds"] == [0, 1, 2, 3] and told["plan"]["drawing"]["num_seeds"] == 2 and "torch" in whole["versions"]
    assert told["adapter"]["settings"] == {"layers": "all"} and len(told["answers"]) == 6


def test_what_is_read_of_the_json_is_what_was_written():
    for found in (evaluated(), evaluated(pictures=False), evaluated(identity=None, copied=None)):
        told = json.loads(to_json([found]))["audits"][0]
        read = AuditRecord.from_json(told)
        assert json.loads(json.dumps(read.to_json()).replace("NaN", "null")) == told
        assert read.measures == record_of(found).measures and read.adapter == record_of(found).adapter


def test_json_tells_the_checkpoints_of_a_run():
    checks = [Check(50, 0.2, 0.9, math.nan), Check(100, 0.6, 0.8, math.nan)]
    told = json.loads(to_json([evaluated()], Curve(checks, checks[1])))["checkpoints"]
    assert [(one["step"], one["kept"], one["loss"]) for one in told] == [(50, False, None), (100, True, None)]


def test_without_pictures_nothing_is_said_of_likeness():
    found = evaluated(pictures=False)
    assert words(found)["learnt"] == words(found)["copied"] == "Not measured"
    assert "--images FOLDER" in sentence(found, "learnt")


# a number for each axis


def test_an_axis_is_its_worst_measure():
    small, large = Figure(0.1, 0.05, 0.2, 2), Figure(0.4, 0.3, 0.5, 2)
    found = evaluated(lfd_s1_relative=small, lfd_s4_relative=large, lfd_s2_relative=large, lfd_s3_relative=small)
    assert axis_figure(found, "world") == axis_figure(found, "class") == large
    assert axis_figure(found, "learnt") == MEASURED["identity"] and axis_figure(found, "lfd_s1_relative") == small
    far = evaluated(w2_style=Figure(0.5, 0.4, 0.6, 2))
    assert axis_figure(far, "confined") == Figure(2.0, 1.6, 2.4, 2), "in units of what other seeds make of it"
    assert axis_figure(evaluated(pictures=False), "copied") is None
    told = json.loads(to_json([found]))["audits"][0]["verdict"]
    assert told.keys() == AXES.keys() and told["world"]["value"] == 0.4 and told["world"]["low"] == 0.3


def test_limits_hold_in_their_direction():
    found = evaluated()
    assert Limit("learnt", 0.5, upwards=False).sentence(found) is None
    assert Limit("learnt", 0.6, upwards=False).sentence(found) is None, "at the limit is within it"
    assert Limit("learnt", 0.7, False).sentence(found) == "learnt is 0.600 (0.500 to 0.700), below the limit of 0.7."
    assert Limit("world", 0.02, upwards=True).sentence(found) is None
    assert "above the limit of 0.01" in str(Limit("world", 0.01, upwards=True).sentence(found))
    assert "was not measured" in str(Limit("copied", 1, upwards=True).sentence(evaluated(pictures=False)))


@pytest.mark.parametrize("text", ["world", "world=", "world=nan", "world=a", "world=inf"])
def test_what_is_no_limit(text):
    with pytest.raises(UserError, match=r"is no limit: write world=0\.05"):
        parse_limit(text, True, False)
    with pytest.raises(UserError, match="There is no axis"):
        parse_limit(f"x{text}", True, False)


def test_a_picture_learnt_by_heart_is_a_copy():
    """Though among other content nothing is."""
    learnt = evaluated(recalled=Figure(0.8, 0.6, 0.9, 32))
    assert words(learnt)["copied"] == "Yes" and axis_figure(learnt, "copied") == Figure(0.8, 0.6, 0.9, 32)
    assert "From its words alone, 80% (60% to 90%) of the images are a training image over again" in sentence(
        learnt, "copied"
    )
    none = evaluated(recalled=Figure(0.0, 0.0, 0.1, 32))
    assert words(none)["copied"] == "None seen" and "From its words alone, 0%" in sentence(none, "copied")


def test_a_divergence_of_the_base_itself_is_no_movement():
    """What the base model makes of another batch is rounding: of half precision it may be far above 1e-9."""
    tiny = Figure(3e-6, 1e-6, 5e-6, 2)
    moved = evaluated(lfd_s1=tiny, lfd_s1_relative=tiny)
    assert words(moved)["moved"] == "Yes"
    rounded = replace(moved, untouched=replace(moved.untouched, measures=moved.untouched.measures | {"lfd_s1": tiny}))
    assert words(rounded)["moved"] == "Only around the concept"


def test_a_leak_that_cannot_be_told_is_not_called_absent():
    moved = Figure(0.04, 0.03, 0.05, 2)
    for leak, word in ((Figure(0.06, -0.05, 0.17, 2), "Inconclusive"), (Figure(0.0, -0.05, 0.05, 2), "No sign")):
        found = evaluated(lfd_s3=moved, class_leak=leak)
        assert words(found)["leaked"] == word and "(−0.0500 to" in sentence(found, "leaked")
    assert words(evaluated(lfd_s3=moved, class_leak=Figure(0.05, 0.01, 0.09, 2)))["leaked"] == "No sign"
    assert words(evaluated(lfd_s3=moved, class_diversity=Figure(0.9, 0.7, 1.1, 2)))["leaked"] == "No sign"


def test_figures_are_told_as_a_person_reads_them():
    assert [format_number(value) for value in (0, 5e-10, 0.5, -0.0123, 3e-6)] == [
        "0",
        "<1e−9",
        "0.500",
        "−0.0123",
        "3e−6",
    ]
    sure = evaluated(facts=Figure(1.0, 1.0, 1.0, 2))
    assert "Judges see 100% of what" in sentence(sure, "followed"), "no interval where there is no spread"
