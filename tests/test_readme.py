"""What the README tells people to type, typed: on the embedded model, with two training steps."""

import re
import shlex
from pathlib import Path

import pytest

from infusion.toybox.concepts import write_concept

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_python_block_runs(workplace):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program, shortened = re.subn(r"infusion\.Infusion\([^)]*\)", "infusion.Infusion(max_train_steps=2)", block)
    assert shortened == 1
    exec(compile(program, "README.md", "exec"), {})
    assert (workplace / "beach.png").stat().st_size > 0


@pytest.mark.slow
def test_the_commands_run(workplace):
    from typer.testing import CliRunner

    from infusion.cli.main import app

    write_concept(2, "my_cat", class_noun="cat")
    commands = [
        shlex.split(line) for line in re.findall(r"^infusion (.*--base toybox.*|(?:generate|show) .*)$", README, re.M)
    ]
    commands = [command for command in commands if "stable-diffusion" not in " ".join(command)]
    assert [command[0] for command in commands] == ["train", "generate", "show"]
    for command in commands:
        extra = {"train": ["--max-train-steps", "2"], "generate": ["--num-inference-steps", "2"], "show": []}
        result = CliRunner().invoke(app, command + extra[command[0]], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert len(list((workplace / "out").glob("*.png"))) == 9


def test_every_file_the_documents_name_exists():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} names {link}"
