"""All adapters on the base at once, each at its own words: how concepts are composed by default."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from infusion.base import Base, Conditioning, attached
from infusion.base.customization import Customized, Named
from infusion.errors import UserError

_INSTEAD = 'infusion.generate(..., composer="masked-noise") lets each act in its own place.'


@dataclass
class Lock:
    """A base under edits. lock_until: the share of the steps in which images follow the foundation's attention."""

    denoiser: Customized
    lock_until: float

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser.predict(noisy_latents, timesteps, conditioning)

    def before_step(self, latents: Tensor, timestep: Tensor, done: float) -> Tensor:
        self.denoiser.release(done >= self.lock_until)
        return latents


@dataclass(frozen=True)
class Together:
    """lock_until: later steps have maps of their own and no foundation: a third faster, and no longer exact.

    Raises:
        UserError: `lock_until` is no share.
    """

    lock_until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.lock_until <= 1:
            raise UserError(f"lock_until = {self.lock_until:g} is no share of the steps: give a number from 0 to 1.")

    @contextmanager
    def composed(
        self, base: Base, adapters: Sequence[Named], conditioning: Conditioning, conditions: Sequence[Any] = ()
    ) -> Iterator[Lock]:
        if conditions:
            raise UserError(f"The default composer takes no conditions, and {len(conditions)} were given.")
        with attached(base, together(base, adapters)) as denoiser:
            yield Lock(denoiser, self.lock_until)


def together(base: Base, adapters: Sequence[Any]) -> Sequence[Any]:
    """Adapters as they stand in one prompt, as their methods merge them; whatever stands alone, as it is.

    Raises:
        UserError: one is of a method that changes the network for all words, beside one of another; or of a method that
            cannot compose.
    """
    alone = [adapter for adapter in adapters if not hasattr(adapter, "method")]  # words, or what was merged already
    if len(adapters) < 2:
        return adapters
    by_method: dict[Any, list[Any]] = {}
    for adapter in adapters:
        adapter.check_fits(base)
        if adapter not in alone:
            by_method.setdefault(type(adapter.method), []).append(adapter)
    whole = [method for method in by_method if not method.own_tokens_only]
    if len(by_method) > 1 and whole:
        named = [adapter for own in by_method.values() for adapter in own]
        names = ", ".join(f"<{adapter.concept_name}> ({adapter.method.name})" for adapter in named)
        raise UserError(
            f"These concepts are of several methods: {names}; {whole[0].name} changes the network for every word, the "
            f"others' too. {_INSTEAD}"
        )
    for method, own in by_method.items():
        if len(own) > 1 and not method.composes:
            names = ", ".join(f"<{adapter.concept_name}>" for adapter in own)
            raise UserError(
                f"{names} are of {method.name}, which knows one concept at a time: draw them one by one. {_INSTEAD}"
            )
    merged = [one for method, own in by_method.items() for one in (method.merge(base, own) if len(own) > 1 else own)]
    return [*alone, *merged]


COMPOSER = Together()
