"""`infusion train` on a folder of concept folders: one file for each, and every mistake before anything is loaded."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Run, picture
from safetensors.torch import load_file

from infusion.cli import train_folder as cli_together
from infusion.methods.adapter_file import read_adapter_file
from infusion.training import together as training_together


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Three concepts; one folder says its noun and name itself."""
    for name, color in (("anna", "red"), ("ben", "blue"), ("10_cleo dog", "green")):
        image, mask = picture(color, 40)
        folder = tmp_path / "people" / name
        (folder / "masks").mkdir(parents=True)
        image.save(folder / "1.png")
        mask.save(folder / "masks" / "1.png")
    (tmp_path / "people" / "10_cleo dog").rename(tmp_path / "people" / "c")
    (tmp_path / "people" / "c" / "concept.json").write_text('{"name": "cleo", "class_noun": "dog"}')
    for name in ("anna", "ben"):
        (tmp_path / "people" / name / "concept.json").write_text('{"class_noun": "cat"}')
    return tmp_path / "people"


def words(folder: Path, base_dir: Path, *more: object) -> list[object]:
    return ["train", folder, "--base", base_dir, "--device", "cpu", "--max-train-steps", 3, *more]


def test_a_file_for_each(run: Run, people: Path, base_dir: Path) -> None:
    code, told, error = run(*words(people, base_dir, "-o", "files", "--concepts-per-batch", 2))
    assert (code, error) == (0, "")
    assert "3 of 3 concepts learnt, one file each, in files." in told
    assert "Learning 3/3" in told and "concepts/h, " in told
    assert sorted(path.name for path in Path("files").iterdir()) == [
        f"{n}.safetensors" for n in ("anna", "ben", "cleo")
    ]
    about, _ = read_adapter_file("files/cleo.safetensors")
    assert (about["concept_name"], about["class_noun"], about["training"]["num_images"]) == ("cleo", "dog", 1)
    assert run(*words(people / "ben", base_dir, "-o", "ben.safetensors"))[0] == 0
    together, alone = load_file("files/ben.safetensors"), load_file("ben.safetensors")
    assert all(torch.allclose(together[name], alone[name], rtol=1e-3, atol=1e-5) for name in alone)


def test_what_is_there_is_kept(run: Run, people: Path, base_dir: Path) -> None:
    assert run(*words(people, base_dir))[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path("adapters").iterdir()}
    Path("adapters/ben.safetensors").unlink()
    code, told, _ = run(*words(people, base_dir))
    assert code == 0 and "2 of 3 are in adapters already" in told and "1 of 1 concepts learnt" in told
    after = {path: path.stat().st_mtime_ns for path in Path("adapters").iterdir()}
    assert {path.stem for path in after if before[path] != after[path]} == {"ben"}
    _, told, _ = run(*words(people, base_dir, "--no-resume"))
    assert "3 of 3 concepts learnt" in told


def test_who_fails_is_told_when_the_others_are_done(
    run: Run,
    people: Path,
    base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finite = training_together.finite_gradients
    monkeypatch.setattr(
        training_together, "finite_gradients", lambda a: finite(a) * (0 if a.concept_name == "anna" else 1)
    )
    code, told, error = run(*words(people, base_dir))
    assert code == 1 and "2 of 3 concepts learnt" in told
    assert error.startswith("error: <anna>: Training diverged at step 1")
    assert {path.stem for path in Path("adapters").iterdir()} == {"ben", "cleo"}


def test_an_interrupted_command_goes_on(
    run: Run,
    people: Path,
    base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = cli_together._Pace.made

    def stop(pace: cli_together._Pace, name: str, now: object) -> None:
        made(pace, name, now)  # type: ignore[arg-type]
        if name == "cleo":
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_together._Pace, "made", stop)
    code, told, _ = run(*words(people, base_dir))
    assert code == 130 and "Interrupted. What was learnt is kept in adapters" in told
    assert {path.name for path in Path("adapters").iterdir()} == {
        f"{name}.checkpoint.safetensors" for name in ("anna", "ben", "cleo")
    }
    monkeypatch.setattr(cli_together._Pace, "made", made)
    assert run(*words(people, base_dir))[0] == 0
    assert {path.name for path in Path("adapters").iterdir()} == {
        f"{name}.safetensors" for name in ("anna", "ben", "cleo")
    }


def test_a_list_and_a_noun_for_all(run: Run, people: Path) -> None:
    (people / "anna" / "concept.json").unlink()
    entries = [{"instance_data_dir": "anna"}, {"instance_data_dir": "c", "instance_prompt": "a <new1> dog"}]
    (people / "list.json").write_text(json.dumps(entries))
    code, told, _ = run("train", people / "list.json", "--class-noun", "cat", "--dry-run")
    assert code == 0
    assert told == "<anna>, a cat: adapters/anna.safetensors\n<new1>, a cat: adapters/new1.safetensors\n"
    assert not list(Path("adapters").iterdir())


def test_every_mistake_before_anything_is_loaded(
    run: Run,
    people: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli_together, "load_base_on", lambda *given: pytest.fail("a base was loaded"))
    (people / "anna" / "concept.json").unlink()
    (people / "ben" / "1.txt").write_text("a horse")
    (people / "c" / "concept.json").write_text('{"name": "dora", "class_noun": "dog"}')
    (people / "dora").mkdir()
    (people / "dora" / "1.png").write_bytes((people / "c" / "1.png").read_bytes())
    (people / "dora" / "concept.json").write_text('{"class_noun": "dog"}')
    (people / "empty").mkdir()
    given = ["--seed", "x", "--page", "p.html", "--stop", "auto", "--crop", "round", "-o", "one.safetensors"]
    code, _, error = run("train", people, *given)
    assert code == 1
    for told in (
        "seed = 'x' is not allowed",
        "holds several concepts, and --page, --stop can be said of one: leave it out",
        'crop = "round" is not one of',
        "give a folder for their files in the place of one.safetensors",
        "anna: Nothing says what kind of thing",
        'ben: 1.png: The caption "a horse" holds neither',
        'dora: It is the second called "dora"',
        "empty: ",
    ):
        assert told in error
    _, _, error = run("train", people, "--method", "lora", "--class-noun", "cat")
    assert "lora trains one concept at a time: give one of the folders in" in error
