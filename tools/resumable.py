"""What the training scripts share: stopping, resuming, and folders that are there whole or not at all."""

import platform
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from infusion.files import whole_file


class Interruption:
    """Within its block, notes Ctrl-C and SIGTERM, so that a loop can save its state before it ends."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interruption":
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: Any) -> None:
        self.asked = True


class Timer:
    """Rings every so many seconds."""

    def __init__(self, every_seconds: float) -> None:
        self.every = every_seconds
        self.last = time.time()

    def rings(self) -> float:
        """The seconds since it last rang, or 0 if it is not yet time."""
        passed = time.time() - self.last
        if passed < self.every:
            return 0.0
        self.last = time.time()
        return passed


def save_state(path: Path, state: dict[str, Any]) -> None:
    with whole_file(path) as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any] | None:
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """The folder is the old one until the new one is complete."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():  # it was interrupted between the two names
        old.rename(folder)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def machine(device: str) -> str:
    """For the model card."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}; Python {platform.python_version()}"
