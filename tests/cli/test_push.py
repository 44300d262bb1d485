"""`infusion push`, and commands that take a name on the Hub."""

import json
import shlex
from pathlib import Path

import pytest
from conftest import picture
from test_readme import README

from infusion.methods.adapter_file import save_adapter


@pytest.fixture
def saved(base, adapter, tmp_path) -> Path:
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    return Path("my-cat.safetensors")


def test_a_dry_run_writes_all_and_asks_nobody(run, saved, stand_in, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    picture("red")[0].save("1.png")
    code, told, _ = run("push", saved, "user/my-cat", "--images", "1.png", "--dry-run")
    assert code == 0 and "my-cat.hub/pictures/01-1.png: " in told and "nothing was uploaded" in told
    assert Path("my-cat.hub/README.md").read_text().startswith("---\nlibrary_name: diffusers")
    assert stand_in.requests == []
    code, _, error = run("push", saved, "user/my-cat", "--dry-run")
    assert code == 1 and "my-cat.hub is not empty" in error
    code, told, _ = run("push", saved, "user/my-cat", "--dry-run", "-o", "other")
    assert code == 0 and Path("other/adapter.safetensors").exists()


def test_pushed_then_shown_and_drawn_by_name(run, saved, stand_in, base_dir):
    code, told, _ = run("push", saved, "user/my-cat", "--private", "-m", "Mine")
    assert code == 0 and told.startswith(f"{stand_in.url}/user/my-cat: my-cat.safetensors")
    assert stand_in.repositories["user/my-cat"].messages[-1] == "Mine"
    code, shown, _ = run("show", "user/my-cat", "--json")
    assert code == 0 and json.loads(shown)["bytes"] == saved.stat().st_size
    code, _, _ = run(
        "generate", "a <my-cat>", "--concept", "user/my-cat@main", "--num-inference-steps", 1, "-o", "drawn"
    )
    assert code == 0 and Path("drawn/a-my-cat-0.png").exists()
    assert not Path("user").exists()


def test_mistakes_are_one_sentence(run, saved, stand_in, monkeypatch):
    assert "both, or neither" in run("push", saved, "user/my-cat", "-o", "there")[2]
    assert "give user/name" in run("push", saved, "my-cat")[2]
    assert run("show", "user/absent")[2].startswith("error: There is no adapter file user/absent here")
    monkeypatch.delenv("HF_TOKEN")
    code, _, error = run("push", saved, "user/my-cat")
    assert code == 1 and error.splitlines() == [
        "error: Pushing takes a token of the Hub that may write: set HF_TOKEN, or run `hf auth login` once."
    ]


def test_the_readme_s_push_is_one(run, saved, stand_in):
    (line,) = [line for line in README.splitlines() if line.startswith("infusion push")]
    words = shlex.split(line)[1:]
    words = [word for word in words if not word.endswith(".json") and word != "--evaluation"]
    picture("red")[0].save("1.png")
    Path("out").mkdir()
    Path("1.png").rename("out/1.png")
    code, _, error = run(*words)
    assert code == 0, error
    assert set(stand_in.repositories["user/my-cat"].files) >= {"adapter.safetensors", "pictures/01-1.png"}
