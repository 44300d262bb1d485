"""How this process was started -> accelerate's view of it: alone, or one of several that share a training."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infusion.errors import UserError, nearest

if TYPE_CHECKING:
    from accelerate import Accelerator

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "swanlab")


def accelerator_for(report_to: str | None, logging_dir: Path, device: str | None) -> "Accelerator | None":
    """The accelerator of a training; None for a process that is alone and reports to no tracker.

    Processes are those of `accelerate launch` or `torchrun`.

    Raises:
        UserError: the tracker is unknown, or its package is not there.
    """
    if report_to is not None and report_to not in TRACKERS:
        raise UserError(f'--report-to "{report_to}" is none of {", ".join(TRACKERS)}.{nearest(report_to, TRACKERS)}')
    if report_to is None and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    installed = [str(tracker.value) for tracker in get_available_trackers()]
    if report_to is not None and report_to not in installed:
        raise UserError(f"There is no package here for the tracker {report_to}: pip install {report_to}.")
    return Accelerator(cpu=device == "cpu", log_with=report_to, project_dir=logging_dir)


def start_trackers(accelerator: "Accelerator | None", config: dict[str, Any]) -> None:
    """Tell the tracker, where there is one, what is trained."""
    if accelerator is not None and accelerator.log_with:
        accelerator.init_trackers("infusion", config={key: value for key, value in config.items() if value is not None})
