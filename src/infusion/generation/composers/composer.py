"""What a composer is: a base and several adapters -> one denoiser for prompts that name their concepts."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from infusion.base import Base, Conditioning, Denoiser
from infusion.base.customization import Named


class Composition(Denoiser, Protocol):
    """A denoiser in which concepts act, and what it does between steps."""

    def before_step(self, latents: Tensor, timestep: Tensor, done: float) -> Tensor:
        """The latents [B, C, H, W] of the step that comes; done: the share of the steps that are made."""
        ...


class Composer(Protocol):
    """One file of this folder, under `COMPOSER`."""

    def composed(
        self, base: Base, adapters: Sequence[Named], conditioning: Conditioning, conditions: Sequence[Any] = ()
    ) -> AbstractContextManager[Composition]:
        """The composition, on the live network for the length of the block.

        Args:
            conditioning: of the batch, without the unconditional rows of guidance. conditions: what the composer takes
                beside the prompts, such as control images or a layout.

        Raises:
            UserError: the adapters do not go together; a condition is given that this composer does not take.
        """
        ...
