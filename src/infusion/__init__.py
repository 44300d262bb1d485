"""Infusion: teach a text-to-image model a concept in a few kilobytes, without breaking the model."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "UserError": "errors",
    "Concept": "concepts.concept",
    "load_concept": "concepts.concept",
    "load_concepts": "concepts.list",
    "Base": "base",
    "Denoiser": "base",
    "load_base": "base",
    "Infusion": "methods",
    "Adapter": "methods",
    "subject_masks": "concepts.masks",
    "TrainingSettings": "recipes",
    "train": "training.loop",
    "Job": "training.together",
    "train_together": "training.together",
    "save_adapter": "methods.adapter_file",
    "load_adapter": "methods.adapter_file",
    "generate": "generation.pipeline",
    "customize": "generation.diffusers_pipeline",
    "push_adapter": "sharing.repository",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import infusion` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'infusion' has no attribute '{name}'")
    return getattr(import_module(f"infusion.{_HOMES[name]}"), name)
