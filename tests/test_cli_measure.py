"""`infusion evaluate`, `benchmark` and `report`: files as people have them, and mistakes in one sentence."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file
from test_benchmark import SPEC
from test_comparison import write_results

from infusion import benchmark, evaluation_defaults
from infusion.adapter_file import save_adapter
from infusion.base import load_base
from infusion.benchmark import Done
from infusion.cli import main
from infusion.concept import Concept
from infusion.methods import Infusion
from infusion.repository import write_repository
from infusion.toybox.concepts import concept_pictures, write_concept

ELSEWHERE = ("--clip", "toybox-b", "--encoder", "toybox-b", "--device", "cpu")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["infusion", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def tiny_plan(monkeypatch):
    """As little drawn as can be measured."""
    whole = evaluation_defaults.plan_for

    def shrunk(*given, **named):
        plan = whole(*given, **named)
        drawing = replace(plan.drawing, num_class_pictures=3, num_inference_steps=1, num_timesteps=1)
        prompts = plan.prompts[:2]
        return replace(plan, prompts=prompts, unrelated=plan.unrelated[:2], siblings=plan.siblings[:2], drawing=drawing)

    monkeypatch.setattr(evaluation_defaults, "plan_for", shrunk)


@pytest.fixture
def tiny_file(base, adapter, tmp_path) -> Path:
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base, {"max_train_steps": 3})
    return tmp_path / "my-cat.safetensors"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[Path, Path]:
    """An adapter of the embedded base, of a concept that nothing was learnt of, and its pictures."""
    folder = tmp_path_factory.mktemp("toy")
    images, masks = concept_pictures(3, 3, class_noun="cat")
    given = (None,) * 3
    concept = Concept("my-cat", "cat", tuple(images), tuple(masks), given, ("1", "2", "3"), (), ("given",) * 3)
    base = load_base(device="cpu")
    save_adapter(Infusion().adapter(base, concept), folder / "my-cat.safetensors", base)
    write_concept(3, folder / "train", 3, class_noun="cat")
    return folder / "my-cat.safetensors", folder / "train"


def test_an_adapter_on_the_hub_is_measured_and_its_card_tells_it(run, toy, tiny_plan, stand_in):
    stand_in.add("user/my-cat", {"adapter.safetensors": toy[0].read_bytes()})
    code, _, error = run("evaluate", "user/my-cat", "--seeds", 1, "--device", "cpu")
    assert code == 0 and not error
    found = Path("user-my-cat-evaluation.json")
    card = write_repository(toy[0], "user/my-cat", Path("repository"), evaluation=found)[0].read_text()
    value = json.loads(found.read_text())["measures"]["text_alignment"]["value"]
    assert f"type: text_alignment\n      value: {value}\n" in card and "- Are prompts followed? **" in card


def test_an_adapter_of_the_embedded_base_is_measured_by_its_judges(run, toy, tiny_plan):
    file, pictures = toy
    code, told, error = run(
        "evaluate", file, "--pictures", pictures, "--seeds", 1, "-o", "page.html", "--device", "cpu"
    )
    assert code == 0 and not error
    assert "Was it learnt?" in told and "Drawing 18/18" in told and "page.json: all figures" in told
    found = json.loads(Path("page.json").read_text())
    assert found["witnesses"] == {"clip": "toybox-b", "encoder": "toybox-b", "judges": "b"}
    assert {"identity", "facts_background", "copied", "class_leak"} <= found["measures"].keys()
    assert found["measures"]["w2_exact"]["null"] > 0 and found["num_pictures"] == 3
    assert "Real picture 3" in Path("page.html").read_text()


def test_an_adapter_of_another_base_is_measured_without_judges(run, tiny_file, tiny_plan):
    Path("prompts.txt").write_text("a {} te\na {} do\n")
    words = ("evaluate", tiny_file, "--prompts", "prompts.txt", "--quick", "--json", "all.json", *ELSEWHERE)
    code, told, _ = run(*words)
    assert code == 0 and "2 prompts × 2 seeds" in told and "This takes real pictures" in told
    found = json.loads(Path("all.json").read_text())
    assert found["witnesses"]["judges"] is None and not {"facts", "identity"} & found["measures"].keys()
    assert [one["text"] for one in found["plan"]["prompts"]] == ["a {} te", "a {} do"]
    assert found["measures"]["lfd_s1"]["value"] < 1e-9 < found["measures"]["lfd_s4"]["value"]
    assert Path("my-cat-evaluation.html").exists()


def test_everything_that_is_wrong_is_told_at_once(run):
    Path("empty").mkdir()
    Path("prompts.txt").write_text("a cat\n")
    Path("file").write_text("")
    code, _, error = run(
        *("evaluate", "none.safetensors", "--pictures", "empty", "--prompts", "prompts.txt", "-o", "file/page.html")
    )
    assert code == 1 and "4 mistakes in this command" in error and "Traceback" not in error
    for told in ("There is no adapter file", "empty has no pictures", "must have {} once", "a part of that path"):
        assert told in error


def test_pictures_have_to_be_of_the_class_and_several(run, tiny_file):
    Path("one").mkdir()
    Image.new("RGB", (16, 16)).save("one/1.png")
    assert "one has one picture" in run("evaluate", tiny_file, "--pictures", "one")[2]
    Image.new("RGB", (16, 16), "red").save("one/2.png")
    Path("one/2.txt").write_text("a photo of a dog")
    error = run("evaluate", tiny_file, "--pictures", "one")[2]
    assert 'The pictures in one are not of this adapter\'s class "cat". 2.png: ' in error


def test_files_that_are_no_adapters_are_refused(run, tmp_path, adapter, base):
    save_file({"a": next(adapter.parameters()).detach().clone()}, tmp_path / "other.safetensors")
    assert "is a .safetensors file of another tool" in run("evaluate", "other.safetensors")[2]
    Path("text.safetensors").write_text("no")
    assert "is not a readable .safetensors file" in run("evaluate", "text.safetensors")[2]


def test_another_base_is_refused(run, tiny_file, toy, base_dir):
    error = run("evaluate", toy[0], "--base", base_dir, *ELSEWHERE)[2]
    assert 'was trained on the base "toybox", but the base loaded is' in error
    assert "There is no device" in run("evaluate", tiny_file, "--device", "quantum")[2]


def test_judges_cannot_see_other_classes(run, tiny_file, adapter, base, tmp_path):
    adapter.class_noun = "kat"
    save_adapter(adapter, tmp_path / "kat.safetensors", base)
    error = run("evaluate", "kat.safetensors", "--base", "toybox")[2]
    assert 'class noun of this adapter is "kat"' in error and 'Did you mean "cat"?' in error


@pytest.mark.parametrize("seeds", ["0", "1000000000", "many"])
def test_absurd_numbers_of_seeds_are_refused(run, seeds):
    code, _, error = run("evaluate", "my-cat.safetensors", "--seeds", seeds)
    assert code == 2 and "--seeds" in error and "Traceback" not in error


def test_the_figures_do_not_overwrite_the_page(run, tiny_file):
    assert "cannot both be x.json" in run("evaluate", tiny_file, "-o", "x.json")[2]


# benchmark, report


@pytest.fixture
def spec(tmp_path) -> Path:
    (tmp_path / "tiny.toml").write_text(SPEC.format(each=1, pairs=0, rate=0.03))
    return tmp_path / "tiny.toml"


def made(path: Path, folder: Path, num_processes: int) -> Iterator[Done]:
    """Results as a run leaves them, without the run."""
    write_results(Path(folder), ("infusion", "lora"), num_individuals=2)
    everything = benchmark.units(benchmark.load_specification(path))
    for done, unit in enumerate(everything, start=1):
        yield Done(unit, done, len(everything), 1.0, "Training diverged at step 3." if done == 1 else None)


def test_a_dry_run_says_how_much_it_is(run, spec):
    code, told, _ = run("benchmark", spec, "--dry-run")
    assert code == 0 and "Tiny: 4 rows × 2 individuals × 2 prompts × 1 seed;" in told
    assert f"8 results: 0 are in {spec.with_suffix('')}, 8 are to be made." in told
    assert not spec.with_suffix("").exists()


def test_a_run_ends_in_a_page_and_names_what_failed(run, spec, monkeypatch):
    monkeypatch.setattr(benchmark, "run", made)
    code, told, _ = run("benchmark", spec, "--processes", 2)
    first, *_, last = benchmark.units(benchmark.load_specification(spec))
    assert code == 0 and f"Measuring 8/8 {last.row} {last.individuals[0].seed}" in told
    assert "1 result could not be measured" in told
    assert f"  - {first.row} {first.individuals[0].seed}: Training diverged at step 3." in told
    folder = spec.with_suffix("")
    assert all((folder / name).exists() for name in ("index.html", "table.md", "table.json"))


def test_a_run_that_is_interrupted_says_how_to_go_on(run, spec, monkeypatch):
    def interrupted(*given):
        yield next(made(*given))
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run", interrupted)
    code, told, _ = run("benchmark", "tiny.toml", "--processes", 2)
    assert (
        code == 130 and "infusion benchmark tiny.toml -o tiny --processes 2" in told and "infusion report tiny" in told
    )


def test_report_writes_the_page_anew(run, tmp_path):
    write_results(tmp_path / "results", ("infusion", "lora"), num_individuals=2)
    code, _, _ = run("report", "results", "-o", "page.html")
    assert code == 0 and Path("page.html").exists() and not Path("results/index.html").exists()
    assert Path("results/table.md").read_text().startswith("| row |") and json.loads(
        Path("results/table.json").read_text()
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("benchmark", "quik"), 'There is no benchmark "quik".'),
        (("benchmark", "none.toml"), "Cannot read the benchmark none.toml"),
        (("benchmark", "wrong.toml"), 'Unknown key "tittle". Did you mean "title"?'),
        (("report", "nowhere"), "There is no folder nowhere"),
        (("report", "empty"), "There are no results in empty"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(run, words, told):
    Path("empty").mkdir()
    Path("wrong.toml").write_text('tittle = "x"')
    code, _, error = run(*words)
    assert code == 1 and told in error and "Traceback" not in error
