"""Method: frozen settings that make adapters. Adapter: a module that owns tensors, and how they edit a base."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from infusion.base.model import Base
from infusion.base.streams import ValueResiduals
from infusion.settings import setting, validate

if TYPE_CHECKING:
    from infusion.concept import Concept


class Adapter(nn.Module, ABC):
    """What a method learns of one concept. `parameters()` trains, `state_dict()` is the file.

    In prompts the concept is written `<concept_name>`; the text model reads the class noun.
    """

    def __init__(self, method: "Method", concept_name: str, class_noun: str) -> None:
        super().__init__()
        self.method = method
        self.concept_name = concept_name
        self.class_noun = class_noun

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def draw_borrows(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """Which rows of a training batch take the foundation's queries, [B]; None for what `edit` says."""
        return None

    @abstractmethod
    def check_fits(self, base: Base) -> None:
        """Raise UserError if the base lacks what this adapter edits."""

    @abstractmethod
    def edit(self) -> ValueResiduals:
        """How this adapter changes its base."""


@dataclass(frozen=True)
class Method(ABC):
    """A recipe: a frozen dataclass of settings."""

    name: ClassVar[str]
    paper: ClassVar[str]

    learning_rate: float = setting(0.01, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(500, help="Optimiser steps.", minimum=1)

    def __post_init__(self) -> None:
        validate(self)

    @abstractmethod
    def adapter(self, base: Base, concept: "Concept") -> Adapter:
        """A fresh adapter for a concept: it changes nothing until it is trained."""

    @abstractmethod
    def num_parameters(self, network: nn.Module) -> int:
        """How many numbers an adapter for this network learns: the method's closed form."""

    @abstractmethod
    def restored(self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str) -> Adapter:
        """An adapter with the tensors of a file, ready for use; UserError if the base lacks what they edit."""
