"""Method: frozen settings that make adapters. Adapter: a module that owns tensors, and how they edit a base."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from infusion.base.customization import Edit
from infusion.base.model import Base
from infusion.errors import UserError
from infusion.recipes import MethodSettings

if TYPE_CHECKING:
    from infusion.concepts.concept import Concept


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

    @property
    def words(self) -> str:
        """What the text model reads where a prompt names the concept."""
        return self.method.words(self.class_noun)

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

    def draw_borrows(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """Which rows of a training batch take the foundation's queries, [B]; None for what the edits say."""
        return None

    def after_step(self, base: Base) -> None:
        """What a method keeps up to date beside the optimiser."""

    @abstractmethod
    def check_fits(self, base: Base) -> None:
        """Raise UserError if the base lacks what this adapter edits."""

    @abstractmethod
    def edits(self, base: Base) -> Sequence[Edit]:
        """How this adapter changes its base."""


class Method(MethodSettings, ABC):
    """A recipe: settings, which are declared in `recipes.py`, and the adapters that follow from them.

    composes: whether several of its concepts can stand in one prompt. diffusers_loader: where a stock diffusers
    pipeline reads the file, the name of its method for that. trains_together: whether rows of a batch can each be
    customized by a concept of their own, untouched by the others', so that several are trained at a time.
    """

    paper: ClassVar[str]
    composes: ClassVar[bool] = True
    diffusers_loader: ClassVar[str | None] = None
    trains_together: ClassVar[bool] = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a page of its pictures should say of what can be learnt."""
        return ()

    @abstractmethod
    def adapter(self, base: Base, concept: "Concept") -> Adapter:
        """A fresh adapter for a concept: it predicts what the base predicts for `words`, until it is trained."""

    @abstractmethod
    def num_parameters(self, base: Base, class_noun: str) -> int:
        """How many numbers an adapter for this base learns: the method's closed form."""

    @abstractmethod
    def restored(self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str) -> Adapter:
        """An adapter with the tensors of a file, ready for use; UserError if the base lacks what they edit."""

    @classmethod
    def together(cls, base: Base, adapters: Sequence[Adapter]) -> Sequence[Adapter]:
        """Adapters of this method that can be laid on one base at a time; UserError where these cannot.

        By default the method's edits simply add up.
        """
        return adapters


def together(base: Base, adapters: Sequence[Any]) -> Sequence[Any]:
    """Adapters for one prompt, as their method composes them; whatever stands alone, as it is.

    Raises:
        UserError: they are of several methods, or of one that cannot compose.
    """
    if len(adapters) < 2:
        return adapters
    methods = {type(adapter.method) for adapter in adapters}
    if len(methods) > 1:
        names = ", ".join(f"<{adapter.concept_name}> ({adapter.method.name})" for adapter in adapters)
        raise UserError(f"Concepts of one method can stand in one prompt; these are of several: {names}.")
    method = methods.pop()
    if not method.composes:
        names = ", ".join(f"<{adapter.concept_name}>" for adapter in adapters)
        raise UserError(f"{names} are of {method.name}, which knows one concept at a time: draw them one by one.")
    return method.together(base, adapters)


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
