"""Textual Inversion: the embeddings of the words that name the concept (Gal et al., arXiv 2208.01618)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from infusion.base.model import Base
from infusion.base.token_vectors import ALL_LAYERS, TokenVectors
from infusion.errors import UserError
from infusion.methods.adapter import Adapter, embeddings_of, load_tensors
from infusion.methods.method import Method
from infusion.settings import setting

if TYPE_CHECKING:
    from infusion.concepts.concept import Concept


@dataclass(frozen=True)
class TextualInversion(Method):
    """One vector for every token of the class noun, from which it starts.

    Defaults: diffusers' training script, with its learning rate unscaled.

    There it is multiplied by the images per step where `--scale_lr` is given.
    """

    name: ClassVar[str] = "textual-inversion"
    paper: ClassVar[str] = "arXiv 2208.01618"
    own_tokens_only: ClassVar[bool] = True
    diffusers_loader: ClassVar[str | None] = "load_textual_inversion"

    learning_rate: float = setting(5e-4, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(3000, help="Optimiser steps.", minimum=1)

    def adapter(self, base: Base, concept: "Concept") -> "TextualInversionAdapter":
        return TextualInversionAdapter(self, concept.name, concept.class_noun, embeddings_of(base, concept.class_noun))

    def num_parameters(self, base: Base, class_noun: str) -> int:
        """Tokens of the class noun times the width of the text model: 768 on Stable Diffusion 1.5 for "cat"."""
        return embeddings_of(base, class_noun).numel()

    def restored(
        self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str
    ) -> "TextualInversionAdapter":
        start = embeddings_of(base, class_noun)
        return load_tensors(TextualInversionAdapter(self, concept_name, class_noun, start), tensors, base)


class TextualInversionAdapter(Adapter):
    """Embeddings [n, width]. The one tensor of its file is called `<name>`, as diffusers' loader reads it."""

    def __init__(self, method: TextualInversion, concept_name: str, class_noun: str, vectors: Tensor) -> None:
        super().__init__(method, concept_name, class_noun)
        self.register_parameter(f"<{concept_name}>", nn.Parameter(vectors))

    def renamed(self, concept_name: str) -> "TextualInversionAdapter":
        """Its tensor is called by the concept, and is renamed too."""
        return TextualInversionAdapter(self.method, concept_name, self.class_noun, self.vectors.data)  # type: ignore[arg-type]

    @property
    def diffusers_words(self) -> str:
        return f"<{self.concept_name}>"

    @property
    def vectors(self) -> nn.Parameter:
        return next(self.parameters())

    def check_fits(self, base: Base) -> None:
        if base.text_encoder is None:
            raise UserError(f"<{self.concept_name}> has words of its own, and this pipeline has no text model.")
        width = base.text_encoder.get_input_embeddings().embedding_dim
        if self.vectors.shape[1] != width:
            raise UserError(
                f'The vectors of <{self.concept_name}> have a width of {self.vectors.shape[1]}, but the text model of "'
                f'{base.id}" reads {width}: they are for another one.'
            )

    def edits(self, base: Base) -> list[TokenVectors]:
        return [TokenVectors(self.concept_name, self.words, {ALL_LAYERS: self.vectors})]


def read_textual_inversion(path: str | Path, base: Base, concept_name: str, class_noun: str) -> TextualInversionAdapter:
    """A Textual Inversion of diffusers or of another tool: one tensor [n, width] or [width] in a .safetensors file.

    Args:
        class_noun: stands for the concept where the base's own view is asked for; it must have as many tokens as the
            file has vectors.

    Raises:
        UserError: the file cannot be read, holds something else, or does not fit the base or the noun.
    """
    try:
        tensors = list(load_file(path).values())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a readable .safetensors file ({error}).") from error
    if len(tensors) != 1 or tensors[0].dim() not in (1, 2):
        raise UserError(f"{path} holds no Textual Inversion: that is one tensor of one or two dimensions.")
    vectors = tensors[0].float().reshape(-1, tensors[0].shape[-1])
    if len(vectors) != len(embeddings_of(base, class_noun)):
        raise UserError(
            f'{path} has {len(vectors)} vectors, but "{class_noun}" has {len(embeddings_of(base, class_noun))} tokens; '
            "give a class noun of as many."
        )
    adapter = TextualInversionAdapter(TextualInversion(), concept_name, class_noun, vectors)
    adapter.check_fits(base)
    return adapter.to(base.device).eval()
