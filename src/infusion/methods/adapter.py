"""Adapter: what a method learns of one concept, as tensors, and how these edit a base."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infusion.base import Base, Denoiser
from infusion.base.customization import Edit
from infusion.base.denoising import Batch, denoising_loss
from infusion.errors import UserError

if TYPE_CHECKING:
    from infusion.methods.method import Method


class Adapter(nn.Module, ABC):
    """What a method learns of one concept. `parameters()` trains, `state_dict()` is the file.

    In prompts the concept is written `<concept_name>`; the text model reads `words` there. Parameters have the names of
    the file, such as the network's own paths, and stand in one flat module: a tree of modules like the network's would
    take several times the memory of the numbers.
    """

    def __init__(self, method: "Method", concept_name: str, class_noun: str) -> None:
        super().__init__()
        self.method = method
        self.concept_name = concept_name
        self.class_noun = class_noun

    def renamed(self, concept_name: str) -> "Adapter":
        """The same adapter, whose concept prompts call otherwise; tensors are shared."""
        renamed = copy.copy(self)
        renamed.concept_name = concept_name
        return renamed

    @property
    def words(self) -> str:
        """What the text model reads where a prompt names the concept."""
        return self.method.words(self.class_noun)

    @property
    def spoken(self) -> Mapping[str, str]:
        """By concept name, what the text model reads where a prompt names the concept."""
        return {self.concept_name: self.words}

    @property
    def diffusers_words(self) -> str:
        """What a prompt says for the concept where the method's `diffusers_loader` has loaded it."""
        return self.words

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch's, for names with dots too."""
        self._parameters[name] = param

    def get_parameter(self, target: str) -> nn.Parameter:
        return dict(self.named_parameters())[target]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, whose own check takes a name with dots for one in a module that is not there."""
        assert not strict or state_dict.keys() == self.state_dict().keys()
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What trains, with its learning rate, as torch's optimisers take it."""
        return [{"params": list(self.parameters()), "lr": self.method.learning_rate}]

    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """What the adapter draws by chance for each row of a training batch, [B]; None for nothing."""
        return None

    def training_edits(self, base: Base, rows: Sequence[int], drawn: Tensor | None) -> Sequence[Edit]:
        """How this adapter changes its base in a training step; by default as ever.

        Args:
            rows: which rows of the batch are its own. drawn: what `draw` gave for these, [len(rows)].
        """
        return self.edits(base)

    def loss(self, base: Base, denoiser: Denoiser, batch: Batch) -> Tensor:
        """What a training step makes smaller, a scalar: by default the mean squared error of the prediction."""
        return denoising_loss(base, denoiser, batch, self.method.masked_loss)

    def after_step(self, base: Base) -> None:
        """What a method keeps up to date beside the optimiser."""

    @abstractmethod
    def check_fits(self, base: Base) -> None:
        """Raise UserError if the base lacks what this adapter edits."""

    @abstractmethod
    def edits(self, base: Base) -> Sequence[Edit]:
        """How this adapter changes its base."""


def load_tensors(adapter: Adapter, tensors: Mapping[str, Tensor], base: Base) -> Any:
    """The adapter with the tensors of a file, ready for use.

    Raises:
        UserError: their names or shapes are not those of the adapter.
    """
    own = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if own != given:
        name = min(own.items() ^ given.items())[0]
        raise UserError(
            f'The adapter of "{adapter.concept_name}" does not fit the base "{base.id}" or its own settings: {name} '
            f"has the shape {given.get(name, 'none')} where {own.get(name, 'none')} is expected."
        )
    adapter.load_state_dict(dict(tensors))
    return adapter.to(base.device).eval()


def embeddings_of(base: Base, words: str) -> Tensor:
    """The text model's own embeddings of the tokens of `words` in a prompt, [n, width].

    Raises:
        UserError: the base has no one text model whose words could be learnt.
    """
    base.as_stable_diffusion("a method that trains words")
    conditioning = base.encode(["a <words>"], {"words": words})
    ids = conditioning.token_ids[0, list(conditioning.concept_tokens[0]["words"])]
    return base.text_encoder.get_input_embeddings()(ids).detach().float().clone()
