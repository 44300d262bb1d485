"""What is to come finds its place: a stub each of a loss on the maps of two concepts, a gradient step on the latents, a
merge, and a composer with a control image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from infusion.base import Base, Conditioning, Denoiser
from infusion.base.cross_attention import AttentionRecorder
from infusion.base.customization import Merged, Named
from infusion.base.denoising import Batch, squared_error
from infusion.base.token_vectors import ALL_LAYERS, TokenVectors
from infusion.concepts.concept import Concept
from infusion.errors import UserError
from infusion.generation.pipeline import sample_prompts
from infusion.methods.adapter import Adapter
from infusion.methods.textual_inversion import TextualInversion
from infusion.training.settings import TrainingSettings
from infusion.training.together import Job, train_together


def drawn(base: Base, prompt: str, adapters: Sequence[Named] = (), **options: Any) -> Tensor:
    return torch.cat(list(sample_prompts(base, prompt, adapters, num_inference_steps=3, guidance_scale=4.0, **options)))


# --- a loss on the maps of two concepts ---


@dataclass(frozen=True)
class Apart(TextualInversion):
    """Words whose attention maps are kept apart, beside the usual error."""

    name: ClassVar[str] = "apart"
    learns_jointly: ClassVar[bool] = True
    seen: ClassVar[list[float]] = []

    def joint_loss(
        self, base: Base, denoiser: Denoiser, adapters: Sequence[Adapter], batches: Sequence[Batch]
    ) -> Tensor:
        batch = Batch.joined(batches)
        named = [[at for tokens in row.values() for at in tokens] for row in batch.conditioning.concept_tokens]
        with AttentionRecorder(base.network) as recorder:
            error = squared_error(base, denoiser, batch, self.masked_loss).mean()
        first, second = recorder.token_map(named, 8, 8).split([len(batch.latents) for batch in batches])
        overlap = (first.mean(0) * second.mean(0)).mean()
        self.seen.append(float(overlap.detach()))
        gradients = torch.autograd.grad(overlap, [p for a in adapters for p in a.parameters()], retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
        return error + overlap


def test_a_loss_on_the_maps_of_two_concepts(base: Base, concept: Concept) -> None:
    method = Apart(max_train_steps=3, learning_rate=0.01)
    concepts = [replace(concept, name=name) for name in ("one", "two")]
    adapters = method.adapters(base, concepts)
    before = [adapter.state_dict()[f"<{one.name}>"].clone() for adapter, one in zip(adapters, concepts, strict=True)]
    settings = TrainingSettings(train_batch_size=2)
    jobs = [Job(adapter, one, settings) for adapter, one in zip(adapters, concepts, strict=True)]
    steps = [now for _, now in train_together(base, jobs)]
    assert not any(isinstance(now, UserError) for now in steps) and len(steps) == 6
    assert len(Apart.seen) == 3
    for adapter, start in zip(adapters, before, strict=True):
        assert not torch.equal(next(adapter.parameters()), start)


# --- a gradient step on the latents ---


class _Steering:
    """Latents go down the gradient of how strong the base's prediction is, before every step."""

    def __init__(self, base: Base, conditioning: Conditioning) -> None:
        self.base = base
        self.conditioning = conditioning
        self.norms: list[float] = []

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.base.predict(noisy_latents, timesteps, conditioning)

    def before_step(self, latents: Tensor, timestep: Tensor, done: float) -> Tensor:
        with torch.enable_grad():
            moved = latents.detach().requires_grad_()
            strength = self.base.predict(moved, timestep, self.conditioning).square().mean()
            (gradient,) = torch.autograd.grad(strength, moved)
        self.norms.append(float(gradient.norm()))
        return latents - 10 * gradient


class SteeringComposer:
    def __init__(self) -> None:
        self.made: list[_Steering] = []

    @contextmanager
    def composed(
        self, base: Base, adapters: Sequence[Named], conditioning: Conditioning, conditions: Sequence[Any] = ()
    ) -> Iterator[_Steering]:
        self.made.append(_Steering(base, conditioning))
        yield self.made[-1]


def test_a_gradient_step_on_the_latents(base: Base) -> None:
    composer = SteeringComposer()
    steered, plain = drawn(base, "a cat", composer=composer), drawn(base, "a cat")
    assert len(composer.made[0].norms) == 3 and min(composer.made[0].norms) > 0
    assert (steered - plain).abs().max() > 1e-4
    assert all(parameter.grad is None for parameter in base.network.parameters())


# --- a merge ---


@dataclass(frozen=True)
class Averaged(TextualInversion):
    """Of several words, the mean."""

    name: ClassVar[str] = "averaged"

    @classmethod
    def merge(cls, base: Base, adapters: Sequence[Any]) -> Sequence[Merged]:
        mean = torch.stack([adapter.vectors for adapter in adapters]).mean(dim=0)
        edits = [TokenVectors(one.concept_name, one.words, {ALL_LAYERS: mean}) for one in adapters]
        return [Merged("both", edits, {one.concept_name: one.words for one in adapters})]


def test_a_merge_takes_adapters_and_gives_one(base: Base, concept: Concept) -> None:
    one, two = Averaged().adapters(base, [replace(concept, name="one"), replace(concept, name="two")])
    moved = torch.randn(next(one.parameters()).shape, generator=torch.Generator().manual_seed(0))
    next(one.parameters()).data += moved
    next(two.parameters()).data -= moved  # so that their mean is the class noun itself
    merged = drawn(base, "a <one> and a <two>", [one, two])
    torch.testing.assert_close(merged, drawn(base, "a cat and a cat"), rtol=1e-4, atol=1e-4)
    assert (merged - drawn(base, "a <one> and a cat", [one])).abs().max() > 1e-3


# --- a control image ---


class _Controlled:
    def __init__(self, base: Base, control: Tensor) -> None:
        self.base = base
        self.control = control

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.base.predict(noisy_latents, timesteps, conditioning) + self.control

    def before_step(self, latents: Tensor, timestep: Tensor, done: float) -> Tensor:
        return latents


class ControlComposer:
    @contextmanager
    def composed(
        self, base: Base, adapters: Sequence[Named], conditioning: Conditioning, conditions: Sequence[Any] = ()
    ) -> Iterator[_Controlled]:
        (control,) = conditions
        yield _Controlled(base, control)


def test_a_composer_with_a_control_image(base: Base) -> None:
    control = torch.zeros(1, 1, 8, 8)
    plain = drawn(base, "a cat", composer=ControlComposer(), conditions=[control])
    assert torch.equal(plain, drawn(base, "a cat"))
    control[..., :4] = 1
    controlled = drawn(base, "a cat", composer=ControlComposer(), conditions=[control])
    assert (controlled - plain).abs()[..., :4].max() > 1e-2
