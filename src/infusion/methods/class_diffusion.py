"""ClassDiffusion: Custom Diffusion whose words are held near the class noun's meaning (arXiv 2405.17532)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from infusion.base import Base, Denoiser
from infusion.base.denoising import Batch
from infusion.base.token_vectors import TextReader
from infusion.methods.closed_form import sentence_ends
from infusion.methods.keys_and_values import KeysAndValuesAdapter, KeysAndValuesMethod
from infusion.settings import setting

_PROMPT = "a photo of a {}"


@dataclass(frozen=True)
class ClassDiffusion(KeysAndValuesMethod):
    """Custom Diffusion and a second loss, 1 - cos between the pooled text states of "a photo of a sks cat" and of
    "a photo of a cat", so that the phrase keeps the class's meaning.

    Defaults: Custom Diffusion's, and the paper's weight of 1.
    """

    name: ClassVar[str] = "class-diffusion"
    paper: ClassVar[str] = "arXiv 2405.17532"

    semantic_weight: float = setting(1.0, help="How much the loss on the phrase's meaning counts.", minimum=0)

    def fresh(self, base: Base, concept_name: str, class_noun: str) -> "ClassDiffusionAdapter":
        return ClassDiffusionAdapter(self, concept_name, class_noun, base)


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
