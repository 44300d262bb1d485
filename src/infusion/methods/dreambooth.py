"""DreamBooth: every weight of the network, and images of the class to keep it (Ruiz et al., arXiv 2208.12242)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from infusion.base.customization import SwappedParameters
from infusion.base.edits import bare
from infusion.base.model import Base
from infusion.errors import UserError
from infusion.methods.adapter import Adapter, load_tensors
from infusion.methods.method import PriorPreservingMethod
from infusion.settings import setting

if TYPE_CHECKING:
    from infusion.concepts.concept import Concept


@dataclass(frozen=True)
class DreamBooth(PriorPreservingMethod):
    """A copy of the whole UNet, trained on "sks cat".

    Defaults: diffusers' training script with prior preservation.
    """

    name: ClassVar[str] = "dreambooth"
    paper: ClassVar[str] = "arXiv 2208.12242"
    composes: ClassVar[bool] = False  # each is a network, and one runs at a time

    learning_rate: float = setting(5e-6, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(800, help="Optimiser steps.", minimum=1)

    def adapter(self, base: Base, concept: "Concept") -> "DreamBoothAdapter":
        return DreamBoothAdapter(self, concept.name, concept.class_noun, base)

    def num_parameters(self, base: Base, class_noun: str) -> int:
        """All of the UNet's: 860 million on Stable Diffusion 1.5."""
        return sum(parameter.numel() for parameter in base.network.parameters())

    def restored(
        self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str
    ) -> "DreamBoothAdapter":
        return load_tensors(DreamBoothAdapter(self, concept_name, class_noun, base), tensors, base)


class DreamBoothAdapter(Adapter):
    """Weights in the place of the UNet's, under the UNet's own names."""

    def __init__(self, method: DreamBooth, concept_name: str, class_noun: str, base: Base) -> None:
        super().__init__(method, concept_name, class_noun)
        for path, weight in bare(base.network).named_parameters():
            self.register_parameter(path, nn.Parameter(weight.detach().float().clone()))

    def check_fits(self, base: Base) -> None:
        there = {path: weight.shape for path, weight in bare(base.network).named_parameters()}
        if {path: weight.shape for path, weight in self.named_parameters()} != there:
            raise UserError(
                f'The weights of <{self.concept_name}> are not those of the network of "{base.id}": they are for '
                "another architecture."
            )

    def edits(self, base: Base) -> list[SwappedParameters]:
        dtype = base.dtype
        return [SwappedParameters({path: weight.to(dtype) for path, weight in self.named_parameters()})]
