"""ClassDiffusion: Custom Diffusion, and a second loss that holds the phrase near the class."""

import torch

from infusion.base import Base
from infusion.concepts.concept import Concept
from infusion.methods.class_diffusion import ClassDiffusion
from infusion.methods.custom_diffusion import CustomDiffusion
from infusion.training.loop import train
from infusion.training.settings import TrainingSettings

OF_CLASS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
STEPS, RATE = 8, 0.01


def trained(base: Base, concept: Concept, method: ClassDiffusion | CustomDiffusion) -> torch.nn.Module:
    adapter = method.adapter(base, concept)
    for _ in train(base, adapter, concept, TrainingSettings(train_batch_size=2), class_latents=OF_CLASS):
        pass
    return adapter


def test_without_its_weight_it_is_custom_diffusion(base: Base, concept: Concept) -> None:
    settings = {"max_train_steps": 2, "learning_rate": RATE}
    own = trained(base, concept, ClassDiffusion(semantic_weight=0, **settings))  # type: ignore[arg-type]
    theirs = trained(base, concept, CustomDiffusion(**settings))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), theirs.parameters(), strict=True))


def test_the_phrase_is_held_near_its_class(base: Base, concept: Concept) -> None:
    losses = []
    for weight in (0.0, 5.0):
        method = ClassDiffusion(semantic_weight=weight, max_train_steps=STEPS, learning_rate=RATE)
        adapter = method.fresh(base, concept.name, concept.class_noun)
        start = float(adapter.semantic_loss(base))
        for _ in train(base, adapter, concept, TrainingSettings(train_batch_size=2), class_latents=OF_CLASS):
            pass
        losses.append(float(adapter.semantic_loss(base)))
    assert start > 0
    assert losses[1] < min(start, losses[0])


def test_the_second_loss_moves_the_word_alone(base: Base, concept: Concept) -> None:
    adapter = ClassDiffusion().fresh(base, concept.name, concept.class_noun)
    adapter.semantic_loss(base).backward()
    moved = [name for name, parameter in adapter.named_parameters() if parameter.grad is not None]
    assert moved == ["rare_token_vectors"]
