"""Full-size networks, counted and not run -> what a training step and a guided image cost, beside plain calls.

    python tools/step_flops.py

Networks live on the `meta` device, where operations have shapes and no contents. Counted is one image, one
multiplication with its addition as 2 FLOP; and what the graph of a step keeps for the backward pass, without the
weights, at 2 bytes a number.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))

from family_table import MODELS

from infusion.base import Base, rank_form
from infusion.base.denoiser import Conditioning
from infusion.base.frozen_convolutions import lean_convolutions
from infusion.methods.infusion import Infusion
from infusion.methods.infusion.adapter import InfusionAdapter


@dataclass(frozen=True)
class Case:
    """A model at a size of image: the widths of its text states and of its pooled states (0 without)."""

    model: str
    size_px: int
    text_width: int
    pooled_width: int = 0


SD15 = Case("Stable Diffusion 1.5", 512, 768)
SDXL = Case("Stable Diffusion XL", 1024, 2048, 1280)
_TERA, _NUM_TOKENS = 1e12, 77


class Counted:
    """One network without contents, and what calls of it cost."""

    def __init__(self, case: Case, device: str = "meta") -> None:
        self.case = case
        self.device = torch.device(device)
        family, config = next((family, config) for model, family, _, config in MODELS if model == case.model)
        with self.device:
            network = UNet2DConditionModel(**config)
            pipeline: Any = SimpleNamespace(unet=network.requires_grad_(False), vae_scale_factor=8)
            self.base = Base(case.model, family, pipeline, None)
            layers = self.base.text_layers.items()
            widths = {f"{path}.{layer.values}.value_residual": layer.width for path, layer in layers}
            self.adapter = InfusionAdapter(Infusion(), "cat", "cat", widths)

    def forward(self) -> float:
        """TFLOP of one plain call with one row."""
        with torch.no_grad():
            return tera_flop(lambda: self._predict(self.base, 1))

    def step(self) -> float:
        """TFLOP of a training step."""
        return tera_flop(self._step)

    def _step(self) -> None:
        with lean_convolutions(self.base.network), self.base.customized(self.adapter) as denoiser:
            self._predict(denoiser, 1, named=1).square().mean().backward()

    def guided(self) -> tuple[float, float, float]:
        """TFLOP of a step of the sampler with guidance: the plain model; a concept; and with the lock released."""

        def released() -> None:
            denoiser.release(True)
            self._predict(denoiser, 2, named=1)

        with torch.no_grad():
            plain = tera_flop(lambda: self._predict(self.base, 2))
            with self.base.customized(self.adapter) as denoiser:
                locked = tera_flop(lambda: self._predict(denoiser, 2, named=1))
                return plain, locked, tera_flop(released)

    def _predict(self, denoiser: Any, num_rows: int, named: int = 0) -> Tensor:
        """A call with so many rows, of which the last `named` name the concept."""
        case = self.case
        with self.device:
            pooled = torch.zeros(num_rows, case.pooled_width) if case.pooled_width else None
            tokens = tuple({} for _ in range(num_rows - named)) + tuple({"cat": (4,)} for _ in range(named))
            states, ids = torch.zeros(num_rows, _NUM_TOKENS, case.text_width), torch.zeros(num_rows, _NUM_TOKENS)
            told = Conditioning(states, tokens, ids, pooled_states=pooled)
            latents = torch.zeros(num_rows, 4, case.size_px // 8, case.size_px // 8)
            return denoiser.predict(latents, torch.full((num_rows,), 500), told)


def kept_mb(case: Case) -> float:
    """What the graph of a training step keeps, with the attention of a CPU, which keeps no maps: nor does a GPU's."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FakeTensorMode(), saved_tensors_hooks(keep, lambda tensor: tensor):
        counted = Counted(case, "cpu")
        counted._step()
        for weight in counted.base.network.parameters():
            kept.pop(weight.untyped_storage()._cdata, None)
    return sum(2 * tensor.untyped_storage().nbytes() // tensor.itemsize for tensor in kept.values()) / 1e6


def tera_flop(call: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / _TERA


@contextmanager
def general_form() -> Iterator[None]:
    """Customized rows compute their cross-attention, with borrowed queries."""
    with patch.object(rank_form, "has_rank_form", lambda layer: False):
        yield


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| model | image | form | forward | step | kept, MB | guided | locked | released |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in (SD15, SDXL):
        counted = Counted(case)
        for form, context in (("rank", ExitStack), ("general", general_form)):
            with context():
                step, kept = counted.step(), kept_mb(case)
                plain, locked, released = counted.guided()
            numbers = (counted.forward(), step, kept, plain, locked, released)
            costs = " | ".join(f"{number:.3f}" for number in numbers)
            print(f"| {case.model} | {case.size_px} px | {form} | {costs} |", flush=True)


if __name__ == "__main__":
    main()
