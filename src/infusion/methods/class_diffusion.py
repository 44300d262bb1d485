"""ClassDiffusion: Custom Diffusion whose words are held near the class noun's meaning (arXiv 2405.17532)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from infusion.base import Base, Denoiser
from infusion.base.customization import Merged
from infusion.base.denoising import Batch
from infusion.base.token_vectors import TextReader
from infusion.concepts.concept import Concept
from infusion.methods.adapter import embeddings_of, load_tensors
from infusion.methods.closed_form import sentence_ends
from infusion.methods.keys_and_values import KeysAndValuesAdapter, keys_and_values, merged
from infusion.methods.method import PriorPreservingMethod
from infusion.settings import setting

_PROMPT = "a photo of a {}"


@dataclass(frozen=True)
class ClassDiffusion(PriorPreservingMethod):
    """Custom Diffusion and a second loss, 1 - cos between the pooled text states of "a photo of a sks cat" and of
    "a photo of a cat", so that the phrase keeps the class's meaning.

    Defaults: Custom Diffusion's, and the paper's weight of 1.
    """

    name: ClassVar[str] = "class-diffusion"
    paper: ClassVar[str] = "arXiv 2405.17532"

    learning_rate: float = setting(8e-5, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(250, help="Optimiser steps.", minimum=1)
    semantic_weight: float = setting(1.0, help="How much the loss on the phrase's meaning counts.", minimum=0)

    def adapter(self, base: Base, concept: Concept) -> "ClassDiffusionAdapter":
        return ClassDiffusionAdapter(self, concept.name, concept.class_noun, base)

    def num_parameters(self, base: Base, class_noun: str) -> int:
        """As Custom Diffusion's: both weights of every layer, and the rare token's vectors."""
        weights = sum(weight.numel() for weight in keys_and_values(base).values())
        return weights + embeddings_of(base, self.rare_token).numel()

    def restored(
        self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str
    ) -> "ClassDiffusionAdapter":
        return load_tensors(ClassDiffusionAdapter(self, concept_name, class_noun, base), tensors, base)

    @classmethod
    def merge(cls, base: Base, adapters: Sequence[KeysAndValuesAdapter]) -> Sequence[Merged]:
        """The concepts on one set of weights, in closed form."""
        return [merged(base, adapters)]


class ClassDiffusionAdapter(KeysAndValuesAdapter):
    """Custom Diffusion's tensors."""

    method: ClassDiffusion

    def loss(self, base: Base, denoiser: Denoiser, batch: Batch) -> Tensor:
        return super().loss(base, denoiser, batch) + self.method.semantic_weight * self.semantic_loss(base)

    def semantic_loss(self, base: Base) -> Tensor:
        """1 - cos of the pooled states of the phrase, which are learnt, and of the class noun alone."""
        named = base.encode([_PROMPT.format(f"<{self.concept_name}>")], self.spoken)
        phrase = TextReader(base, [self.word()]).read(named)
        noun = base.encode([_PROMPT.format(self.class_noun)])
        ends = [sentence_ends(base, told.token_ids)[0] - 1 for told in (phrase, noun)]
        pooled = [told.text_states[0, end].float() for told, end in zip((phrase, noun), ends, strict=True)]
        return 1 - F.cosine_similarity(pooled[0], pooled[1], dim=0)
