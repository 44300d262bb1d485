"""Method: a recipe, as frozen settings that make adapters. Declared where no torch is needed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from infusion.settings import setting, validate

if TYPE_CHECKING:
    from torch import Tensor

    from infusion.base import Base, Denoiser
    from infusion.base.denoising import Batch
    from infusion.concepts.concept import Concept
    from infusion.methods.adapter import Adapter

MASKED_LOSS = "Learn the subject only, and nothing of what is around it."


@dataclass(frozen=True)
class Method(ABC):
    """A recipe: hyperparameters, and the adapters that follow from them. A subclass in this folder is registered.

    name: the file's, with dashes. composes: whether several of its concepts can stand in one prompt. own_tokens_only:
    whether its adapters act where a prompt names their concept and nowhere else, so that concepts of other such methods
    can stand beside them. diffusers_loader: where a stock diffusers pipeline reads the file, the name of its method for
    that. trains_together: whether rows of a batch can each be customized by a concept of their own, untouched by the
    others', so that several are trained at a time. learns_jointly: whether its concepts are learnt from one batch with
    a loss over all of them, `joint_loss`.

    Two settings of training are the method's own: `masked_loss`, whether only the subject is learnt, and
    `prior_preservation_weight`, how much images of the class that the base draws itself count beside the concept's.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    composes: ClassVar[bool] = True
    own_tokens_only: ClassVar[bool] = False
    diffusers_loader: ClassVar[str | None] = None
    trains_together: ClassVar[bool] = False
    learns_jointly: ClassVar[bool] = False
    prior_preservation_weight: ClassVar[float] = 0.0
    num_class_images: ClassVar[int] = 0

    learning_rate: float = setting(0.01, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(500, help="Optimiser steps.", minimum=1)
    masked_loss: bool = setting(False, help=MASKED_LOSS)

    def __post_init__(self) -> None:
        validate(self)

    def words(self, class_noun: str) -> str:
        """What the text model reads where a prompt names the concept: by default the class noun."""
        return class_noun

    @property
    def notes(self) -> tuple[str, ...]:
        """What a page of its images should say of what can be learnt."""
        return ()

    def adapters(self, base: "Base", concepts: "Sequence[Concept]") -> "Sequence[Adapter]":
        """Fresh adapters, one per concept; a method that learns several at once may let them share tensors."""
        return [self.adapter(base, concept) for concept in concepts]

    @abstractmethod
    def adapter(self, base: "Base", concept: "Concept") -> "Adapter":
        """A fresh adapter for a concept: it predicts what the base predicts for `words`, until it is trained."""

    @abstractmethod
    def num_parameters(self, base: "Base", class_noun: str) -> int:
        """How many numbers an adapter for this base learns: the method's closed form."""

    @abstractmethod
    def restored(self, base: "Base", tensors: "Mapping[str, Tensor]", concept_name: str, class_noun: str) -> "Adapter":
        """An adapter with the tensors of a file, ready for use; UserError if the base lacks what they edit."""

    def joint_loss(
        self, base: "Base", denoiser: "Denoiser", adapters: "Sequence[Adapter]", batches: "Sequence[Batch]"
    ) -> "Tensor":
        """The loss of one step over several concepts, each with a batch of its own: a scalar. Of methods that
        `learns_jointly`."""
        raise NotImplementedError

    @classmethod
    def merge(cls, base: "Base", adapters: "Sequence[Any]") -> "Sequence[Any]":
        """Several of its adapters as they stand in one prompt; by default their edits simply add up.

        Raises:
            UserError: they cannot.
        """
        return adapters


@dataclass(frozen=True)
class RareTokenMethod(Method):
    """Of a method whose prompts name the concept by a word that means little, and the class noun: "sks cat"."""

    rare_token: str = setting("sks", help="The word before the class noun that stands for the concept.")

    def words(self, class_noun: str) -> str:
        return f"{self.rare_token} {class_noun}"


@dataclass(frozen=True)
class PriorPreservingMethod(RareTokenMethod):
    """Of a method that trains images of the class beside the concept's: constants elsewhere are settings here."""

    prior_preservation_weight: float = setting(  # type: ignore[misc]
        1.0, help="How much images of the class that the base draws count in the loss; 0 is without.", minimum=0
    )
    num_class_images: int = setting(  # type: ignore[misc]
        200, help="Images of the class that the base draws for prior preservation.", minimum=1
    )
