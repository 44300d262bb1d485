"""Base + fresh adapter + concept -> trained adapter: one loop that yields its progress."""

import hashlib
import json
import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infusion.base import Base
from infusion.base.customization import Edited
from infusion.base.denoising import Batch, denoising_loss
from infusion.base.frozen_convolutions import lean_convolutions
from infusion.base.noise_schedule import schedule_facts
from infusion.base.prompts import class_prompt
from infusion.concepts.concept import Concept
from infusion.concepts.masks import SubjectMask, subject_masks
from infusion.errors import UserError
from infusion.generation.pipeline import sample_prompts
from infusion.methods.adapter import Adapter
from infusion.training.checkpoint import Checkpoint
from infusion.training.dataset import class_set, step_generator, training_set
from infusion.training.processes import Processes
from infusion.training.settings import TrainingSettings

_HALF_PRECISION_LOSS_SCALE = 1024.0
_LEARNING_RATE_SHARES = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
}


class Diverged(UserError):
    """The training's numbers left what floats can hold."""


@dataclass(frozen=True)
class Progress:
    """State after an optimiser step. loss: that step's; images_per_second: mean since the start."""

    step: int
    max_train_steps: int
    loss: float
    images_per_second: float
    seconds_left: float


def train(
    base: Base,
    adapter: Adapter,
    concept: Concept,
    settings: TrainingSettings | None = None,
    checkpoint_path: str | Path | None = None,
    masks: Sequence[SubjectMask] | None = None,
    class_latents: Tensor | None = None,
    crop: str = "square",
    processes: Processes | None = None,
) -> Generator[Progress, None, None]:
    """Train `adapter` in place; yields after every optimiser step, so leaving the loop early stops training.

    Args:
        checkpoint_path: where the state is kept between steps (`.safetensors`). If the file exists, training goes on
            from it, to the same bytes as an uninterrupted run; it is also written when the loop is left early.
        masks: `subject_masks(base, concept, crop)`, where the caller has them already; used by methods with a masked
            loss.
        class_latents: `draw_class(base, adapter.class_noun, ...)`, where the caller has them already; used by methods
            with prior preservation.
        crop: "square" trains on the middle square of every image; "buckets" lets images keep their shape, roughly:
            each is fitted to the nearest of some shapes with the square's area, and a batch is of one shape.
        processes: those that share each batch, every one with its own copy of base and adapter; they learn what one
            alone would. The first writes the checkpoints; their tracker is told every step.

    Raises:
        UserError: the batch cannot be shared evenly; the checkpoint belongs to another training, or cannot be written;
            a caption lacks the concept.
    """
    base.freeze()
    learner = Learner(base, adapter, concept, settings, checkpoint_path, masks, class_latents, crop)
    processes = processes or Processes()
    rows = processes.rows(learner.settings.train_batch_size)
    try:
        while not learner.is_done:
            loss = _share(adapter, processes, _gradients(base, learner, rows), learner.step)
            progress = learner.update(loss)
            processes.log({"loss": loss, "learning_rate": learner.learning_rate}, learner.step)
            if learner.step % learner.settings.checkpointing_steps == 0 and processes.is_first:
                learner.save()
            yield progress
    finally:
        if processes.is_first:
            learner.save()


@dataclass(frozen=True)
class Drawn:
    """One batch of an adapter in training, and what is drawn beside it.

    by_chance: what the adapter draws for each row, [B]; None for nothing. of_class: the batch of prior preservation.
    """

    batch: Batch
    by_chance: Tensor | None
    of_class: Batch | None

    def rows(self, indices: Sequence[int]) -> "Drawn":
        """Of these rows alone."""
        by_chance = None if self.by_chance is None else self.by_chance[indices]
        return Drawn(self.batch.rows(indices), by_chance, self.of_class and self.of_class.rows(indices))


class Learner:
    """An adapter in training, from step to step: what it is shown, its optimiser and its checkpoint.

    Arguments and errors are those of `train`; whoever has one makes the gradients. loss_scale: what a loss is
    multiplied by before its backward pass, so that small gradients outlast half precision.
    """

    def __init__(
        self,
        base: Base,
        adapter: Adapter,
        concept: Concept,
        settings: TrainingSettings | None = None,
        checkpoint_path: str | Path | None = None,
        masks: Sequence[SubjectMask] | None = None,
        class_latents: Tensor | None = None,
        crop: str = "square",
    ) -> None:
        adapter.check_fits(base)
        self.base = base
        self.adapter = adapter.eval()  # but for gradients
        self.loss_scale = _HALF_PRECISION_LOSS_SCALE if base.dtype == torch.float16 else 1.0
        self.settings = settings = settings or TrainingSettings()
        if not adapter.method.masked_loss:
            masks = None
        elif masks is None:
            masks = subject_masks(base, concept, crop)
        self._data = training_set(base, concept, masks, settings.flip, adapter.words, crop)
        class_latents = _class_latents(base, adapter, class_latents)
        self._prior = None if class_latents is None else class_set(base, adapter.class_noun, class_latents)
        self._optimizer = torch.optim.AdamW(adapter.parameter_groups())
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        identity = _identity(base, adapter, concept, settings, class_latents, crop)
        self._checkpoint = Checkpoint(checkpoint_path, adapter, self._optimizer, identity)
        self.step = self._first_step = self._checkpoint.load()
        self._started = time.monotonic()
        self._between_steps = True

    @property
    def max_train_steps(self) -> int:
        return self.adapter.method.max_train_steps

    @property
    def is_done(self) -> bool:
        return self.step >= self.max_train_steps

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return self._optimizer.param_groups[0]["lr"]

    def draws(self) -> Iterator[Drawn]:
        """The batches of the next step; they follow from the seed and the step alone."""
        generator = step_generator(self.settings.seed, self.step)
        size = self.settings.train_batch_size
        for _ in range(self.settings.gradient_accumulation_steps):
            batch = self._data.batch(size, generator)
            by_chance = self.adapter.draw(size, generator)
            yield Drawn(batch, by_chance, self._prior.batch(size, generator) if self._prior else None)

    def update(self, loss: float) -> Progress:
        """Make the step for which the gradients are there; loss: the step's."""
        factor = _LEARNING_RATE_SHARES[self.settings.lr_scheduler](self.step / self.max_train_steps)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._between_steps = False
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.adapter.after_step(self.base)
        self.step += 1
        self._between_steps = True
        seconds = (time.monotonic() - self._started) / (self.step - self._first_step)
        images = self.settings.train_batch_size * self.settings.gradient_accumulation_steps
        left = (self.max_train_steps - self.step) * seconds
        return Progress(self.step, self.max_train_steps, loss, images / seconds, left)

    def save(self) -> None:
        """Write the checkpoint, unless a step was broken off midway."""
        if self._between_steps:
            self._checkpoint.save(self.step)


def draw_class(base: Base, class_noun: str, num_images: int, **sampling: Any) -> Tensor:
    """Latents [N, C, H, W] of the class as the base draws it: what prior preservation trains beside the concept.

    sampling: settings of `sample_prompts`.
    """
    return torch.cat(list(sample_prompts(base, class_prompt(class_noun), seeds=range(num_images), **sampling)))


def _class_latents(base: Base, adapter: Adapter, given: Tensor | None) -> Tensor | None:
    """Those of prior preservation, where the method has it."""
    if adapter.method.prior_preservation_weight == 0:
        return None
    if given is None:
        given = draw_class(base, adapter.class_noun, adapter.method.num_class_images)
    return given.float()


def _gradients(base: Base, learner: Learner, rows: Sequence[int]) -> Tensor:
    """Backward passes of one optimiser step, for some rows of its batches; returns their loss."""
    adapter, method, scale = learner.adapter, learner.adapter.method, learner.loss_scale
    losses = []
    adapter.train()
    try:
        for of_all in learner.draws():
            drawn = of_all.rows(rows)
            edits = adapter.training_edits(base, range(len(rows)), drawn.by_chance)
            customized = base.customized(Edited(adapter.concept_name, edits))
            with lean_convolutions(base.network), customized as denoiser:
                loss = adapter.loss(base, denoiser, drawn.batch)
                if drawn.of_class:
                    of_class = denoising_loss(base, denoiser, drawn.of_class, masked=False)
                    loss = loss + method.prior_preservation_weight * of_class
                loss = loss / learner.settings.gradient_accumulation_steps
                (loss * scale).backward()
            losses.append(loss.detach())
    finally:
        adapter.eval()  # whoever draws between two steps sees what will be drawn in the end
    unscale(adapter, scale)
    return torch.stack(losses).sum()


def unscale(adapter: Adapter, scale: float) -> None:
    """Take the loss's scale out of the gradients."""
    for parameter in adapter.parameters():
        if parameter.grad is not None and scale != 1:
            parameter.grad /= scale


def finite_gradients(adapter: Adapter) -> Tensor:
    """1 if every gradient is a number, else 0: a scalar that stays on the device."""
    finite = [parameter.grad.isfinite().all() for parameter in adapter.parameters() if parameter.grad is not None]
    return torch.stack(finite).all().float()


def diverged(step: int) -> Diverged:
    """step: those made before."""
    return Diverged(
        f"Training diverged at step {step + 1}: a gradient is not a number. Use a smaller learning rate, or hold "
        "the base in another precision (bf16, or no)."
    )


def _share(adapter: Adapter, processes: Processes, loss: Tensor, step: int) -> float:
    """Give every process the gradients of the whole batch; returns its loss.

    Loss and gradients are read at once, because the host waits for the device here.

    Raises:
        Diverged: a gradient is not a number.
    """
    for parameter in adapter.parameters():
        if parameter.grad is not None:
            parameter.grad = processes.mean(parameter.grad)
    of_batch, is_finite = torch.stack([processes.mean(loss), finite_gradients(adapter)]).tolist()
    if not is_finite:
        raise diverged(step)
    return of_batch


def _identity(
    base: Base, adapter: Adapter, concept: Concept, settings: TrainingSettings, class_latents: Tensor | None, crop: str
) -> str:
    """What must agree for a checkpoint to be continued: base, concept, method and settings, as they were given.

    Of the images of the class only their shape: drawn anew, they may differ in the last bit.
    """
    facts = {
        "base": base.fingerprint(),
        "noise_schedule": schedule_facts(base.noise_schedule),
        "dtype": str(base.dtype),
        "concept": [adapter.concept_name, adapter.class_noun, concept.captions],
        "method": [adapter.method.name, asdict(adapter.method)],
        "settings": asdict(replace(settings, checkpointing_steps=1)),
        "class_pictures": None if class_latents is None else list(class_latents.shape),
    }
    if crop != "square":  # which older checkpoints do not name
        facts["crop"] = crop
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for image in (*concept.images, *concept.masks):
        digest.update(image.tobytes() if image else b"none")
    return digest.hexdigest()
