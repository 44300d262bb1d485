"""P+ / XTI: embeddings of the words that name the concept, a set for each cross-attention layer (2303.09522)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from infusion.base.cross_attention import value_widths
from infusion.base.model import Base
from infusion.base.token_vectors import TokenVectors
from infusion.errors import UserError
from infusion.methods.adapter import Adapter, embeddings_of, load_tensors
from infusion.methods.method import Method
from infusion.settings import setting

if TYPE_CHECKING:
    from infusion.concepts.concept import Concept

_SUFFIX = ".token_vectors"


@dataclass(frozen=True)
class ExtendedTextualInversion(Method):
    """Every cross-attention layer reads the prompt with words of its own.

    Defaults: the paper's 500 steps at 5e-3.
    """

    name: ClassVar[str] = "xti"
    paper: ClassVar[str] = "arXiv 2303.09522"
    own_tokens_only: ClassVar[bool] = True

    learning_rate: float = setting(5e-3, help="AdamW's learning rate.", above=0)

    def adapter(self, base: Base, concept: "Concept") -> "ExtendedTextualInversionAdapter":
        return self._fresh(base, concept.name, concept.class_noun)

    def num_parameters(self, base: Base, class_noun: str) -> int:
        """Layers times tokens of the noun times the width of the text model: 16 x 768 on Stable Diffusion 1.5."""
        return len(value_widths(base.network)) * embeddings_of(base, class_noun).numel()

    def restored(
        self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str
    ) -> "ExtendedTextualInversionAdapter":
        return load_tensors(self._fresh(base, concept_name, class_noun), tensors, base)

    def _fresh(self, base: Base, concept_name: str, class_noun: str) -> "ExtendedTextualInversionAdapter":
        vectors = dict.fromkeys(value_widths(base.network), embeddings_of(base, class_noun))
        return ExtendedTextualInversionAdapter(self, concept_name, class_noun, vectors)


class ExtendedTextualInversionAdapter(Adapter):
    """Embeddings [n, width] by layer path."""

    def __init__(
        self, method: ExtendedTextualInversion, concept_name: str, class_noun: str, vectors: Mapping[str, Tensor]
    ) -> None:
        super().__init__(method, concept_name, class_noun)
        for path, start in vectors.items():
            self.register_parameter(path + _SUFFIX, nn.Parameter(start.clone()))

    def vectors(self) -> dict[str, nn.Parameter]:
        return {name.removesuffix(_SUFFIX): parameter for name, parameter in self.named_parameters()}

    def check_fits(self, base: Base) -> None:
        vectors = self.vectors()
        width = base.text_encoder.get_input_embeddings().embedding_dim
        if vectors.keys() != value_widths(base.network).keys() or any(v.shape[1] != width for v in vectors.values()):
            raise UserError(
                f"<{self.concept_name}> has vectors for other cross-attention layers, or for a text model of another "
                f'width, than those of "{base.id}": it is for another architecture.'
            )

    def edits(self, base: Base) -> list[TokenVectors]:
        return [TokenVectors(self.concept_name, self.words, self.vectors())]
