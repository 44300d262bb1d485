"""Custom Diffusion: keys and values of cross-attention and a word, merged in closed form (arXiv 2212.04488)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from infusion.base import Base
from infusion.base.customization import Merged
from infusion.methods.adapter import embeddings_of, load_tensors
from infusion.methods.keys_and_values import KeysAndValuesAdapter, keys_and_values, merged
from infusion.methods.method import PriorPreservingMethod
from infusion.settings import setting

if TYPE_CHECKING:
    from infusion.concepts.concept import Concept


@dataclass(frozen=True)
class CustomDiffusion(PriorPreservingMethod):
    """W_k and W_v of every cross-attention, and the embedding of a rare token before the class noun.

    The paper's scale augmentation is left out; prior preservation uses pictures that the base draws, where the paper
    retrieves real ones.

    Defaults: the paper's steps and its learning rate after scaling.
    """

    name: ClassVar[str] = "custom-diffusion"
    paper: ClassVar[str] = "arXiv 2212.04488"

    learning_rate: float = setting(8e-5, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(250, help="Optimiser steps.", minimum=1)

    def adapter(self, base: Base, concept: "Concept") -> "KeysAndValuesAdapter":
        return KeysAndValuesAdapter(self, concept.name, concept.class_noun, base)

    def num_parameters(self, base: Base, class_noun: str) -> int:
        """Both weights of every layer, and the rare token's vectors: 19.2 million on Stable Diffusion 1.5."""
        weights = sum(weight.numel() for weight in keys_and_values(base).values())
        return weights + embeddings_of(base, self.rare_token).numel()

    def restored(
        self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str
    ) -> "KeysAndValuesAdapter":
        return load_tensors(KeysAndValuesAdapter(self, concept_name, class_noun, base), tensors, base)

    @classmethod
    def merge(cls, base: Base, adapters: Sequence[KeysAndValuesAdapter]) -> Sequence[Merged]:
        """The concepts on one set of weights, in closed form."""
        return [merged(base, adapters)]
