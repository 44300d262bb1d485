"""`infusion benchmark` and `report`: files as people have them, and mistakes in one sentence."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_results import write_results
from test_run_benchmark import SPEC

from infusion.benchmark import run as benchmark
from infusion.benchmark.run import Done

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
