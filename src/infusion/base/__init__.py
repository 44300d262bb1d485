"""The frozen model: the denoiser protocol, loading and encoding, reversible edits, the two streams."""

from infusion.base.customization import attached
from infusion.base.denoiser import Conditioning, Denoiser, concatenate
from infusion.base.model import Base, load_base, same_base

__all__ = ["Base", "Conditioning", "Denoiser", "attached", "concatenate", "load_base", "same_base"]
