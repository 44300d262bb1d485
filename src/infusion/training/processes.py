"""How this process was started -> the processes that share a training: mostly this one alone."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from infusion.errors import UserError, nearest

if TYPE_CHECKING:
    from accelerate import Accelerator

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "swanlab")


class Processes:
    """The processes of `accelerate launch` or `torchrun`, seen from one of them; without an accelerator, one alone.

    Each has its own copy of everything and computes every `num`-th row of a batch. The first writes and speaks.
    """

    def __init__(self, accelerator: "Accelerator | None" = None) -> None:
        self.accelerator = accelerator
        self.num = accelerator.num_processes if accelerator else 1
        self.index = accelerator.process_index if accelerator else 0

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def device(self) -> str | None:
        """This process's own; None for one that is alone, which may choose."""
        return str(self.accelerator.device) if self.accelerator and self.num > 1 else None

    def rows(self, batch_size: int) -> list[int]:
        """This process's rows of a batch.

        Raises:
            UserError: the processes would have different numbers of them.
        """
        if batch_size % self.num:
            raise UserError(
                f"train_batch_size = {batch_size} cannot be shared by {self.num} processes; give a multiple of their "
                "number."
            )
        return list(range(self.index, batch_size, self.num))

    def mean(self, value: Tensor) -> Tensor:
        """Over all processes."""
        return value if self.accelerator is None or self.num == 1 else self.accelerator.reduce(value, "mean")

    def any(self, said: bool) -> bool:
        """Whether this or another process says so."""
        return bool(self.mean(torch.tensor(float(said), device=self.device)).item())

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def report(self, settings: dict[str, Any]) -> None:
        """Tell the tracker, where there is one, what is trained."""
        if self.accelerator and self.accelerator.log_with:
            told = {name: value for name, value in settings.items() if value is not None}
            self.accelerator.init_trackers("infusion", config=told)

    def log(self, values: dict[str, float], step: int) -> None:
        if self.accelerator:
            self.accelerator.log(values, step=step)

    def close(self) -> None:
        if self.accelerator:
            self.accelerator.end_training()


def processes(report_to: str | None = None, logging_dir: Path | None = None, device: str | None = None) -> Processes:
    """Those that share this training.

    Args:
        report_to: a tracker that is told of it, which writes into `logging_dir` where it writes files.

    Raises:
        UserError: the tracker is unknown, or its package is not there.
    """
    if report_to is not None and report_to not in TRACKERS:
        raise UserError(f'--report-to "{report_to}" is none of {", ".join(TRACKERS)}.{nearest(report_to, TRACKERS)}')
    if report_to is None and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    installed = [str(tracker.value) for tracker in get_available_trackers()]
    if report_to is not None and report_to not in installed:
        raise UserError(f"There is no package here for the tracker {report_to}: pip install {report_to}.")
    return Processes(Accelerator(cpu=device == "cpu", log_with=report_to, project_dir=logging_dir))
