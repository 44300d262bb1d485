"""The resumable state of a training (the adapter's tensors, AdamW's moments, the step) <-> one .safetensors file."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from infusion.errors import UserError
from infusion.files import whole_file
from infusion.methods.adapter import Adapter

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoint:
    """Saves and restores an adapter and its optimiser; without a path it does nothing.

    identity: digest of all that training depends on; a checkpoint of another identity is refused.
    """

    def __init__(self, path: str | Path | None, adapter: Adapter, optimizer: torch.optim.AdamW, identity: str) -> None:
        self.path = Path(path) if path else None
        self.adapter = adapter
        self.optimizer = optimizer
        self.identity = identity
        self._saved_step: int | None = None

    def save(self, step: int) -> None:
        """Write the state after `step` steps, whole or not at all."""
        if self.path is None or step in (0, self._saved_step):
            return
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.adapter.state_dict().items()}
        for name, parameter in self.adapter.named_parameters():
            for moment in _MOMENTS:
                tensors[f"{name}.{moment}"] = self.optimizer.state[parameter][moment].cpu()
        with whole_file(self.path) as temporary:
            save_file(tensors, temporary, metadata={"infusion.step": str(step), "infusion.identity": self.identity})
        self._saved_step = step

    def load(self) -> int:
        """Restore the state if the file exists; returns the number of steps done.

        Raises:
            UserError: the file is no checkpoint, is damaged, or belongs to another training.
        """
        if self.path is None or not self.path.exists():
            return 0
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise UserError(f"The checkpoint {self.path} cannot be read ({error}); delete it to start anew.") from error
        if metadata.get("infusion.identity") != self.identity:
            raise UserError(
                f"The checkpoint {self.path} belongs to a training with another base, images or settings; "
                "delete it to start anew (--no-resume does), or give the settings it was made with."
            )
        step = int(metadata["infusion.step"])
        self.adapter.load_state_dict({name: tensors[name] for name in self.adapter.state_dict()})
        for name, parameter in self.adapter.named_parameters():
            state = {moment: tensors[f"{name}.{moment}"].to(parameter.device) for moment in _MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **state}
        self._saved_step = step
        return step
