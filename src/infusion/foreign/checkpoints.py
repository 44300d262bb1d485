"""The folder of a training run -> its checkpoints, in the order of their steps."""

import math
import re
from pathlib import Path

from infusion.errors import UserError
from infusion.foreign.found import RESULTS, Found, inspect
from infusion.foreign.said import STEP
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
    inside = sorted(folder.iterdir())
    steps = [path for path in inside if path.is_dir() and re.fullmatch(r"checkpoint-\d{1,9}", path.name)]
    files = [path for path in inside if path.is_file() and path.suffix in (SAFETENSORS, *TORCH_SUFFIXES)]
    files = [path for path in files if not re.fullmatch(r"<.+>", path.stem)]
    if not steps:
        steps = files
        runs = sorted({STEP.sub("", path.stem) for path in files})
        if len(runs) > 1:
            raise UserError(
                f"{folder} holds files of several runs ({', '.join(map(shown, runs[:5]))}); give one a folder."
            )
    else:
        steps = steps + [path for path in files if path.stem in RESULTS][:1]
    if not steps:
        raise UserError(f"{folder} holds no checkpoints: no folders checkpoint-500/, and no weight files.")
    found = [inspect(path) for path in steps]
    return sorted(found, key=lambda one: math.inf if one.step is None else one.step)
