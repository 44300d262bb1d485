"""Infusion: teach a text-to-image model a concept in a few kilobytes, without breaking the model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infusion.auditing.run import audit as audit
    from infusion.base import Base as Base
    from infusion.base import Denoiser as Denoiser
    from infusion.base import load_base as load_base
    from infusion.concepts.concept import Concept as Concept
    from infusion.concepts.concept import load_concept as load_concept
    from infusion.concepts.list import load_concepts as load_concepts
    from infusion.concepts.masks import subject_masks as subject_masks
    from infusion.errors import UserError as UserError
    from infusion.evaluation.evaluate import evaluate as evaluate
    from infusion.generation.diffusers_pipeline import customize as customize
    from infusion.generation.pipeline import generate as generate
    from infusion.methods.adapter import Adapter as Adapter
    from infusion.methods.adapter_file import load_adapter as load_adapter
    from infusion.methods.adapter_file import save_adapter as save_adapter
    from infusion.methods.class_diffusion import ClassDiffusion as ClassDiffusion
    from infusion.methods.custom_diffusion import CustomDiffusion as CustomDiffusion
    from infusion.methods.dreambooth import DreamBooth as DreamBooth
    from infusion.methods.infusion import Infusion as Infusion
    from infusion.methods.lora import LoRA as LoRA
    from infusion.methods.method import Method as Method
    from infusion.methods.perfusion import Perfusion as Perfusion
    from infusion.methods.textual_inversion import TextualInversion as TextualInversion
    from infusion.methods.xti import ExtendedTextualInversion as ExtendedTextualInversion
    from infusion.sharing.repository import push_adapter as push_adapter
    from infusion.training.loop import train as train
    from infusion.training.settings import TrainingSettings as TrainingSettings
    from infusion.training.together import Job as Job
    from infusion.training.together import train_together as train_together

__version__ = "0.1.0"

_HOMES = {
    "UserError": "errors",
    "Concept": "concepts.concept",
    "load_concept": "concepts.concept",
    "load_concepts": "concepts.list",
    "subject_masks": "concepts.masks",
    "Base": "base",
    "Denoiser": "base",
    "load_base": "base",
    "Method": "methods.method",
    "Adapter": "methods.adapter",
    "Infusion": "methods.infusion",
    "ClassDiffusion": "methods.class_diffusion",
    "CustomDiffusion": "methods.custom_diffusion",
    "DreamBooth": "methods.dreambooth",
    "ExtendedTextualInversion": "methods.xti",
    "LoRA": "methods.lora",
    "Perfusion": "methods.perfusion",
    "TextualInversion": "methods.textual_inversion",
    "save_adapter": "methods.adapter_file",
    "load_adapter": "methods.adapter_file",
    "TrainingSettings": "training.settings",
    "train": "training.loop",
    "Job": "training.together",
    "train_together": "training.together",
    "generate": "generation.pipeline",
    "customize": "generation.diffusers_pipeline",
    "evaluate": "evaluation.evaluate",
    "audit": "auditing.run",
    "push_adapter": "sharing.repository",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import infusion` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'infusion' has no attribute '{name}'")
    return getattr(import_module(f"infusion.{_HOMES[name]}"), name)
