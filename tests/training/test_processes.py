"""Several processes, and trackers, inside one training."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from infusion.cli.main import app
from infusion.errors import UserError
from infusion.toybox.concepts import write_concept
from infusion.training.processes import Processes, processes

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "infusion.cli"]
STEPS = ["--learning-rate", "0.05", "--max-train-steps", "3", "--train-batch-size", "4", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path):
    write_concept(seed=3, folder=tmp_path / "toy")
    return tmp_path / "toy"


def learn(command, folder, base_dir, output, *more):
    words = [*command, "train", folder, "--class-noun", "cat", "--name", "toy", "--base", base_dir, "-o", output]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [str(word) for word in [*words, *STEPS, *more]], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_two_processes_learn_what_one_does(folder, base_dir, tmp_path):
    alone = learn([sys.executable, "-m", "infusion.cli"], folder, base_dir, tmp_path / "one.safetensors")
    assert alone.returncode == 0, alone.stderr
    shared = learn(TWO, folder, base_dir, tmp_path / "two.safetensors")
    assert shared.returncode == 0, shared.stderr
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
    assert shared.stdout.count("parameters.") == 1  # one of them speaks


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(folder, base_dir, tmp_path):
    failed = learn(TWO, folder, base_dir, tmp_path / "a.safetensors", "--train-batch-size", "3")
    assert failed.returncode and "train_batch_size = 3 cannot be shared by 2 processes" in failed.stderr
    assert not (tmp_path / "a.safetensors").exists()


def test_stopping_by_itself_among_several_is_one_of_the_mistakes(tmp_path, monkeypatch):
    team = Processes()
    team.num = 2
    monkeypatch.setattr("infusion.training.processes.processes", lambda *_: team)
    command = ["train", str(tmp_path / "nothing"), "--stop", "auto", "--mixed-precision", "fp8"]
    with pytest.raises(UserError, match=r"(?s)3 mistakes.*--stop auto works in one process.*mixed_precision"):
        app(command, standalone_mode=False)


def test_losses_reach_a_tracker(folder, base_dir, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.chdir(tmp_path)
    command = ["train", str(folder), "--class-noun", "cat", "--name", "toy", "--base", str(base_dir), *STEPS]
    app([*command, "--report-to", "tensorboard"], standalone_mode=False)
    logs = [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]
    told = b"".join(path.read_bytes() for path in logs)
    assert told.count(b"\n\x04loss") == 3  # the tag of a scalar, once a step


def test_unknown_trackers_are_refused():
    with pytest.raises(UserError, match=r'"tensorbord" is none of .*Did you mean "tensorboard"'):
        processes("tensorbord")


def test_a_tracker_that_is_not_installed_is_named(folder, base_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", str(folder), "--class-noun", "cat", "--base", str(base_dir), *STEPS, "--report-to", "aim"]
    with pytest.raises(UserError, match="aim"):
        app(command, standalone_mode=False)
