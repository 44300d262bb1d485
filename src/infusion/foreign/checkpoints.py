"""The folder of a training run -> its checkpoints, in the order of their steps."""

import math
import re
from pathlib import Path

from infusion.errors import UserError
from infusion.foreign.identify import RESULTS, Found, inspect
from infusion.foreign.provenance import STEP
from infusion.foreign.tensor_files import SAFETENSORS, TORCH_SUFFIXES, shown


def checkpoints(folder: str | Path) -> list[Found]:
    """The checkpoints of one training run, in the order of their steps; the final result, if there is one, last.

    Read are folders checkpoint-500/, and files run-000010.safetensors, run-step00000500.safetensors,
    run_000000500.safetensors, learned_embeds-steps-500.safetensors.

    Raises:
        UserError: there are none, they are of several runs, or one is unreadable.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of checkpoints.")
    folders, files = _numbered_folders(folder), _weight_files(folder)
    if folders and _is_readable(folders[0]):
        steps = folders + [path for path in files if path.stem in RESULTS][:1]
    else:  # of some scripts the numbered folders hold the state of the training, and the files what it made
        steps = files
        runs = sorted({STEP.sub("", path.stem) for path in files})
        if len(runs) > 1:
            raise UserError(
                f"{folder} holds files of several runs ({', '.join(map(shown, runs[:5]))}); give one a folder."
            )
    if not steps:
        raise UserError(f"{folder} holds no checkpoints: no folders checkpoint-500/, and no weight files.")
    found = [inspect(path) for path in steps]
    return sorted(found, key=lambda one: math.inf if one.step is None else one.step)


def is_run(path: str | Path) -> bool:
    """Whether it is a folder of checkpoints of a run, and not one customization."""
    path = Path(path)
    if not path.is_dir():
        return False
    numbered = [file for file in _weight_files(path) if STEP.search(file.stem)]
    return len(_numbered_folders(path)) > 1 or len(numbered) > 1


def _numbered_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"checkpoint-\d{1,9}", path.name))


def _weight_files(folder: Path) -> list[Path]:
    """Those that are no words of Custom Diffusion, and no pieces of one."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix in (SAFETENSORS, *TORCH_SUFFIXES)]
    return sorted(path for path in files if not re.fullmatch(r"<.+>|.+-\d+-of-\d+", path.stem))


def _is_readable(path: Path) -> bool:
    try:
        inspect(path)
    except UserError:
        return False
    return True
