"""A benchmark of the embedded model that is as small as one can be."""

import json
import os
from dataclasses import replace

import pytest

from infusion.benchmark import run as benchmark
from infusion.benchmark import units as of_units
from infusion.benchmark.individuals import Individual
from infusion.benchmark.run import Workshop, run
from infusion.benchmark.specification import load_specification
from infusion.benchmark.units import Ground, Unit, adapter_digest, digest, is_done, units
from infusion.errors import UserError
from infusion.training.loop import Diverged

SPEC = """
title = "Tiny"
base = "toybox"
judges = "b"

[individuals]
classes = ["cat", "dog"]
each = {each}
first_seed = 40000

[drawing]
num_seeds = 1
num_class_pictures = 3
num_inference_steps = 2
num_timesteps = 2

[probes]
unrelated = ["a car on the beach", "a dog in the snow"]
siblings = ["a {{}} on the beach", "a {{}} in the snow"]
num_siblings = 1

[pairs]
num = {pairs}
prompts = ["a {{}} next to a {{}} on the beach"]

[[prompts]]
text = "a {{}} on the beach"
background = "beach"

[[prompts]]
text = "a sketch of a {{}} in the forest"
background = "forest"
style = "sketch"

[rows.infusion]
method = "infusion"
learning_rate = {rate}
max_train_steps = 2

[rows.dreambooth]
method = "dreambooth"
learning_rate = 1e-4
max_train_steps = 1
num_class_images = 1
"""


@pytest.fixture
def spec_path(tmp_path):
    def written(each=1, pairs=0, rate=0.03, **changes):
        path = tmp_path / "tiny.toml"
        text = SPEC.format(each=each, pairs=pairs, rate=rate)
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        return path

    return written


def test_the_order_makes_a_part_a_fair_part(spec_path):
    spec = load_specification(spec_path(each=2, pairs=1))
    assert spec.individuals == (
        Individual(40000, "cat"),
        Individual(40001, "dog"),
        Individual(40002, "cat", "zwx"),
        Individual(40003, "dog", "zwx"),
    )
    cells = [unit for unit in units(spec) if len(unit.individuals) == 1]
    assert [unit.row for unit in cells[:8:2]] == ["base", "null", "infusion", "dreambooth"]
    assert {unit.individuals[0] for unit in cells[:8]} == set(spec.individuals[:2])
    pairs = [unit for unit in units(spec) if len(unit.individuals) == 2]
    assert {unit.row for unit in pairs} == {"infusion"}, "DreamBooth does not compose"
    assert [{one.class_noun for one in unit.individuals} for unit in pairs] == [{"cat"}, {"cat", "dog"}]
    assert str(pairs[0].path) == "pairs/infusion/40000-40002.json"


def test_prompts_that_name_the_class_are_not_unrelated(spec_path):
    spec = load_specification(spec_path())
    assert spec.plan_for("dog").unrelated == ("a car on the beach",)
    assert spec.plan_for("cat").siblings == ("a dog on the beach", "a dog in the snow")


def test_the_digest_changes_with_what_it_depends_on_and_nothing_else(spec_path):
    unit = Unit("infusion", (Individual(40000, "cat"),))
    ground = Ground("base", "judges")
    before = digest(load_specification(spec_path()), unit, ground)
    assert digest(load_specification(spec_path(each=2)), unit, ground) == before
    others = [
        digest(load_specification(spec_path(rate=0.01)), unit, ground),
        digest(load_specification(spec_path(**{"in the forest": "in the snow"})), unit, ground),
        digest(load_specification(spec_path()), unit, Ground("another base", "judges")),
        digest(load_specification(spec_path()), unit, Ground("base", "other judges")),
        digest(load_specification(spec_path()), Unit("dreambooth", unit.individuals), ground),
    ]
    assert len({before, *others}) == 6


def test_what_older_results_depend_on_is_told_as_it_was_then(spec_path, monkeypatch):
    """A setting that came later, at its default, makes no result anew."""
    monkeypatch.setattr(of_units, "_images_digest", lambda individual: "pictures")
    cat, ground = Individual(40000, "cat"), Ground("base", "judges")
    assert adapter_digest(load_specification(spec_path()), "infusion", cat, ground) == "85e1f3cd539b2375"


def test_an_adapter_does_not_depend_on_what_is_measured(spec_path):
    cat, ground = Individual(40000, "cat"), Ground("base", "judges")
    spec, other = load_specification(spec_path()), load_specification(spec_path(**{"in the forest": "in the snow"}))
    before = adapter_digest(spec, "infusion", cat, ground)
    assert adapter_digest(other, "infusion", cat, Ground("base", "other judges")) == before
    assert adapter_digest(load_specification(spec_path(rate=0.01)), "infusion", cat, ground) != before
    assert adapter_digest(spec, "infusion", Individual(40001, "cat"), ground) != before
    rare = replace(cat, rare_token="zwx")
    assert adapter_digest(spec, "infusion", rare, ground) == before
    whole = [adapter_digest(spec, "dreambooth", one, ground) for one in (cat, rare)]
    assert whole[0] != whole[1]


def test_a_result_is_done_only_whole_and_for_its_digest(tmp_path):
    unit = Unit("infusion", (Individual(1, "cat"),))
    assert not is_done(tmp_path, unit, "abc")
    (tmp_path / unit.path).parent.mkdir(parents=True)
    for text, done in (('{"digest": "abc"}', True), ('{"digest": "abd"}', False), ('{"digest"', False), ("[]", False)):
        (tmp_path / unit.path).write_text(text)
        assert is_done(tmp_path, unit, "abc") == done


@pytest.mark.slow
def test_a_run_makes_every_result_once(spec_path, tmp_path, monkeypatch):
    folder = tmp_path / "results"
    path = spec_path(each=1)
    found = []
    for done in run(path, folder):
        found.append(done)
        if len(found) == 3:
            break  # as if it were killed
    assert [one.done for one in found] == [1, 2, 3] and found[0].total == 8
    first = folder / "cells" / "base" / "40000.json"
    stamp = first.stat().st_mtime_ns
    rest = list(run(path, folder))
    assert [one.done for one in rest] == [4, 5, 6, 7, 8] and first.stat().st_mtime_ns == stamp
    monkeypatch.setattr(benchmark, "make", None)
    assert list(run(path, folder)) == []

    cell = json.loads((folder / "cells" / "infusion" / "40000.json").read_text())
    assert cell["method"] == "infusion" and cell["num_parameters"] == 768 and cell["num_images"] == 2
    assert cell["measures"]["lfd_s1"] == cell["measures"]["lfd_s3"] == 0 < cell["measures"]["lfd_s4"]
    assert cell["nulls"]["w2_exact"] > 0 and first.with_suffix(".webp").exists()
    base = json.loads((folder / "cells" / "base" / "40000.json").read_text())
    assert base["measures"]["w2_exact"] == base["measures"]["identity"] == 0
    assert base["measures"]["lfd_s4"] < 1e-9
    known = base["known_answers"]
    assert 0 < known["collapse_of_copies"] < 0.6 < known["collapse_of_real"]
    assert known["copied_of_copies"] > known["copied_of_real"]
    assert base["benchmark"] == cell["benchmark"]
    null = json.loads((folder / "cells" / "null" / "40000.json").read_text())
    assert all(rank is None or 0 <= rank <= 1 for rank in null["null_ranks"].values())
    whole = json.loads((folder / "cells" / "dreambooth" / "40001.json").read_text())
    assert whole["measures"]["lfd_s1"] > 1e-9 and whole["file_bytes"] > 10 * 2**20
    assert os.listdir(folder / "work")


def test_what_diverges_is_a_result_without_measures(spec_path, tmp_path, monkeypatch):
    def diverge(*arguments, **settings):
        yield from ()
        raise Diverged("Training diverged at step 1.")

    monkeypatch.setattr(benchmark, "train", diverge)
    path = spec_path()
    unit = Unit("infusion", (Individual(40000, "cat"),))
    said = benchmark.make(Workshop.of(load_specification(path), tmp_path), unit)
    assert said and "diverged" in said
    told = json.loads((tmp_path / unit.path).read_text())
    assert told["measures"] == {} and "diverged" in told["failed"]


def test_other_mistakes_are_no_results(spec_path, tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise UserError("Cannot write: the disk is full.")

    monkeypatch.setattr(benchmark, "save_adapter", full)
    unit = Unit("infusion", (Individual(40000, "cat"),))
    with pytest.raises(UserError, match="disk is full"):
        benchmark.make(Workshop.of(load_specification(spec_path()), tmp_path), unit)
    assert not (tmp_path / unit.path).exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Tiny"', "", '"title" is missing'),
        ('judges = "b"', 'judges = "b"\nprobe = 1', 'Did you mean "probes"'),
        ('"cat", "dog"', '"cat", "dgo"', 'Did you mean "dog"'),
        ('method = "infusion"', 'method = "infusio"', 'Did you mean "infusion"'),
        ("learning_rate = 1e-4", "learning_rat = 1e-4", 'Did you mean "learning_rate"'),
        ("[rows.infusion]", "[rows.base]", "every benchmark has"),
        ("first_seed = 40000", "first_seed = 999999", "kept for others"),
        ("num_siblings = 1", "num_siblings = 2", "needs more classes"),
        ("num_seeds = 1", "num_seeds = 0", "num_seeds = 0 is not allowed"),
        ("num_timesteps", "num_timestep", 'Did you mean "num_timesteps"'),
        ("each = 1", "each = true", '"individuals.each" must be a whole number'),
        ("each = 1", "eahc = 1", 'Did you mean "each"'),
        ("num_siblings = 1", "", '"probes.num_siblings" is missing'),
        ('style = "sketch"', 'style = "oil"', 'No style is "oil"'),
        ('"a sketch of a {} in', '"a sketch in', "stands for the concept"),
        ("[[prompts]]", "[[prompts", "not a TOML file"),
    ],
)
def test_mistakes_in_a_specification_are_told(spec_path, old, new, message):
    with pytest.raises(UserError, match=message):
        load_specification(spec_path(**{old: new}))


def test_a_specification_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="Cannot read"):
        load_specification(tmp_path / "none.toml")
