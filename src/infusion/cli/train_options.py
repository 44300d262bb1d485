"""What the options of a training are, once the command line is read; without its hyperparameters."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infusion.methods.method import Method
    from infusion.training.settings import TrainingSettings

ReadSettings = Callable[[], "tuple[Method, TrainingSettings]"]
"""Reads the method and the settings of its steps; UserError where they are not allowed."""


@dataclass(frozen=True)
class TrainOptions:
    """By the names of the flags of `infusion train`, where they are explained."""

    folder: Path
    class_noun: str | None = None
    name: str | None = None
    base: str = "toybox"
    base_config: str | None = None
    output: Path | None = None
    masks: Path | None = None
    segmenter: str = "auto"
    crop: str = "square"
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    preview_steps: int | None = None
    resume: bool = True
    stop: str = "last"
    clip: str | None = None
    encoder: str | None = None
    page: Path | None = None
    report_to: str | None = None
    concepts_per_batch: int = 8
    dry_run: bool = False
    device: str | None = None
