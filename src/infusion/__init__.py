"""Infusion: teach a text-to-image model a concept in a few kilobytes, without breaking the model."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "UserError": "errors",
    "Concept": "concept",
    "load_concept": "concept",
    "load_concepts": "concept_list",
    "Base": "base",
    "Denoiser": "base",
    "load_base": "base",
    "Infusion": "methods",
    "Adapter": "methods",
    "subject_masks": "masks",
    "TrainingSettings": "recipes",
    "train": "training",
    "Job": "training_together",
    "train_together": "training_together",
    "save_adapter": "adapter_file",
    "load_adapter": "adapter_file",
    "generate": "pipeline",
    "customize": "customized_pipeline",
    "push_adapter": "repository",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import infusion` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'infusion' has no attribute '{name}'")
    return getattr(import_module(f"infusion.{_HOMES[name]}"), name)
