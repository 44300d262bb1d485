"""Full-size networks, counted and not run -> docs/memory.md: what a training step of one image holds at its peak.

    python tools/memory_table.py            # writes the table in docs/memory.md

Fake tensors have shapes and types and no contents; what operations make is added up as long as it is held. Counted are
the frozen weights, what is kept for gradients, and what operations need on the way; not counted are the text model and
the autoencoder (which encode before the first step), and the allocator's own overhead.
"""

import argparse
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from family_table import MODELS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infusion.base import Base
from infusion.base.denoiser import Conditioning
from infusion.base.frozen_convolutions import lean_convolutions
from infusion.methods.infusion import Infusion, InfusionAdapter, residual_widths

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
MARK = "<!-- what follows is written by tools/memory_table.py -->"
HEAD = """| model | image | precision of the frozen weights | gradient checkpointing | peak, GB |
|---|---|---|---|---|
"""
NUM_TOKENS = 77
CASES = [("Stable Diffusion 1.5", 512), ("Stable Diffusion XL", 1024)]


class Alive(TorchDispatchMode):
    """Adds up the storages that operations make, as long as anything holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return made

    def add(self, storage: Any) -> None:
        if storage not in self.seen:
            self.seen.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, storage.nbytes())

    def drop(self, num_bytes: int) -> None:
        self.now -= num_bytes


def peak_gb(name: str, size_px: int, checkpointing: bool) -> float:
    """Of one optimiser step on one image, in 10^9 bytes."""
    family, config = next((family, config) for model, family, _, config in MODELS if model == name)
    with FakeTensorMode(), torch.device("cpu"):
        torch.set_default_dtype(torch.float16)
        network = UNet2DConditionModel(**config)
        torch.set_default_dtype(torch.float32)
        pipeline: Any = SimpleNamespace(unet=network, vae_scale_factor=8)
        base = Base(name, family, pipeline, None)
        network.requires_grad_(False)
        if checkpointing:
            network.enable_gradient_checkpointing()
        adapter = InfusionAdapter(Infusion(), "cat", "cat", residual_widths(base.text_layers, keys=False))
        pooled = (config.get("projection_class_embeddings_input_dim") or 0) - 6 * (
            config.get("addition_time_embed_dim") or 0
        )
        told = Conditioning(
            torch.zeros(1, NUM_TOKENS, network.config.cross_attention_dim, dtype=torch.float16),
            ({"cat": (4,)},),
            torch.zeros(1, NUM_TOKENS, dtype=torch.long),
            pooled_states=torch.zeros(1, pooled, dtype=torch.float16) if pooled else None,
        )
        latents = torch.zeros(1, 4, size_px // 8, size_px // 8)
        alive = Alive()
        for parameter in (*network.parameters(), *adapter.parameters()):
            alive.add(parameter.untyped_storage())
        with alive, lean_convolutions(network), base.customized(adapter) as denoiser:
            denoiser.predict(latents, torch.tensor([500]), told).float().square().mean().backward()
        return alive.peak / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    rows = []
    for name, size_px in CASES:
        for checkpointing in (False, True):
            peak = peak_gb(name, size_px, checkpointing)
            rows.append(f"| {name} | {size_px} px | fp16 | {'yes' if checkpointing else 'no'} | {peak:.2f} |")
            print(rows[-1], flush=True)
    prose = PAGE.read_text().partition(MARK)[0] if PAGE.exists() else "# Memory\n\n"
    PAGE.write_text(f"{prose}{MARK}\n\n{HEAD}" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
