"""Base + fresh adapter + concept -> trained adapter: one loop that yields its progress."""

import hashlib
import json
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from infusion.base import Base, Denoiser
from infusion.base.frozen_convolutions import lean_convolutions
from infusion.base.noise_schedule import training_target
from infusion.checkpoint import Checkpoint
from infusion.concept import Concept
from infusion.dataset import Batch, BucketedSet, TrainingSet, class_set, step_generator, training_set
from infusion.errors import UserError
from infusion.launch import Processes
from infusion.masks import SubjectMask, subject_masks
from infusion.methods import Adapter
from infusion.pipeline import sample_prompts
from infusion.prompts import class_prompt
from infusion.settings import setting, validate

_HALF_PRECISION_LOSS_SCALE = 1024.0
_LEARNING_RATE_SHARES = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
}


@dataclass(frozen=True)
class TrainingSettings:
    """How a method's adapter is trained; what is learned, how fast and how long stands in the method."""

    train_batch_size: int = setting(4, help="Pictures per step.", minimum=1)
    gradient_accumulation_steps: int = setting(1, help="Batches per optimiser step.", minimum=1)
    lr_scheduler: Literal["constant", "linear", "cosine"] = setting(
        "constant", help="How the learning rate runs over the steps; linear and cosine end at zero."
    )
    flip: bool = setting(True, help="Also train on mirror images; turn off for subjects with a left and a right.")
    seed: int = setting(0, help="Everything random in training follows from it.", minimum=0)
    checkpointing_steps: int = setting(100, help="Steps between checkpoints, from which training resumes.", minimum=1)

    def __post_init__(self) -> None:
        validate(self)


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
        crop: "square" trains on the middle square of every picture; "buckets" lets pictures keep their shape, roughly:
            each is fitted to the nearest of some shapes with the square's area, and a batch is of one shape.
        processes: those that share each batch, every one with its own copy of base and adapter; they learn what one
            alone would. The first writes the checkpoints; their tracker is told every step.

    Raises:
        UserError: the batch cannot be shared evenly; the checkpoint belongs to another training, or cannot be written;
            a caption lacks the concept.
    """
    base.freeze()
    settings = settings or TrainingSettings()
    method = adapter.method
    if not method.masked_loss:
        masks = None
    elif masks is None:
        masks = subject_masks(base, concept, crop)
    data = training_set(base, concept, masks, settings.flip, adapter.words, crop)
    prior = _prior(base, adapter, class_latents)
    optimizer = torch.optim.AdamW(adapter.parameter_groups())
    rates = [group["lr"] for group in optimizer.param_groups]
    identity = _identity(base, adapter, concept, settings, prior, crop)
    checkpoint = Checkpoint(checkpoint_path, adapter, optimizer, identity)
    first_step = step = checkpoint.load()
    processes = processes or Processes()
    rows = processes.rows(settings.train_batch_size)
    share_at = _LEARNING_RATE_SHARES[settings.lr_scheduler]
    images_per_step = settings.train_batch_size * settings.gradient_accumulation_steps
    started = time.monotonic()
    adapter.eval()  # but for gradients
    between_steps = True
    try:
        while step < method.max_train_steps:
            loss = _share(adapter, processes, _gradients(base, adapter, data, prior, settings, step, rows), step)
            factor = share_at(step / method.max_train_steps)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            between_steps = False
            optimizer.step()
            optimizer.zero_grad()
            adapter.after_step(base)
            step += 1
            between_steps = True
            processes.log({"loss": loss, "learning_rate": rates[0] * factor}, step)
            if step % settings.checkpointing_steps == 0 and processes.is_first:
                checkpoint.save(step)
            seconds = (time.monotonic() - started) / (step - first_step)
            left = (method.max_train_steps - step) * seconds
            yield Progress(step, method.max_train_steps, loss, images_per_step / seconds, left)
    finally:
        if between_steps and processes.is_first:
            checkpoint.save(step)


def draw_class(base: Base, class_noun: str, num_images: int, **sampling: Any) -> Tensor:
    """Latents [N, C, H, W] of the class as the base draws it: what prior preservation trains beside the concept.

    sampling: settings of `sample_prompts`.
    """
    return torch.cat(list(sample_prompts(base, class_prompt(class_noun), seeds=range(num_images), **sampling)))


def _prior(base: Base, adapter: Adapter, class_latents: Tensor | None) -> TrainingSet | None:
    if adapter.method.prior_preservation_weight == 0:
        return None
    if class_latents is None:
        class_latents = draw_class(base, adapter.class_noun, adapter.method.num_class_images)
    return class_set(base, adapter.class_noun, class_latents.float())


def _gradients(
    base: Base,
    adapter: Adapter,
    data: TrainingSet | BucketedSet,
    prior: TrainingSet | None,
    settings: TrainingSettings,
    step: int,
    rows: Sequence[int],
) -> Tensor:
    """Backward passes of one optimiser step, for some rows of its batches; returns their loss."""
    generator = step_generator(settings.seed, step)
    scale = _HALF_PRECISION_LOSS_SCALE if base.dtype == torch.float16 else 1.0
    method, size = adapter.method, settings.train_batch_size
    total = torch.zeros((), device=base.device)
    adapter.train()
    try:
        for _ in range(settings.gradient_accumulation_steps):
            batch = data.batch(size, generator).rows(rows)
            borrows = adapter.draw_borrows(size, generator)
            borrows = None if borrows is None else borrows[rows]
            with lean_convolutions(base.network), base.customized(adapter, borrows=borrows) as denoiser:
                loss = denoising_loss(base, denoiser, batch, method.masked_loss)
                if prior:
                    of_class = denoising_loss(base, denoiser, prior.batch(size, generator).rows(rows))
                    loss = loss + method.prior_preservation_weight * of_class
                loss = loss / settings.gradient_accumulation_steps
                (loss * scale).backward()
            total += loss.detach()
    finally:
        adapter.eval()  # whoever draws between two steps sees what will be drawn in the end
    for parameter in adapter.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale
    return total


def _share(adapter: Adapter, processes: Processes, loss: Tensor, step: int) -> float:
    """Give every process the gradients of the whole batch; returns its loss.

    Loss and gradients are read at once, because the host waits for the device here.

    Raises:
        Diverged: a gradient is not a number.
    """
    finite = torch.ones_like(loss)
    for parameter in adapter.parameters():
        if parameter.grad is not None:
            parameter.grad = processes.mean(parameter.grad)
            finite *= parameter.grad.isfinite().all()
    of_batch, is_finite = torch.stack([processes.mean(loss), finite]).tolist()
    if not is_finite:
        raise Diverged(
            f"Training diverged at step {step + 1}: a gradient is not a number. Use a smaller learning rate, or hold "
            "the base in another precision (bf16, or no)."
        )
    return of_batch


def denoising_loss(base: Base, denoiser: Denoiser, batch: Batch, masked: bool = True) -> Tensor:
    """Mean over all elements of the squared error of prediction and target; masked: both times the subject mask.

    The target is the base's own kind of prediction: the noise, the velocity or the flow.
    """
    noisy_latents = base.noise_schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = training_target(base.noise_schedule, batch.latents, batch.noise, batch.timesteps)
    error = denoiser.predict(noisy_latents, batch.timesteps, batch.conditioning).float() - target
    return (error * batch.masks if masked else error).square().mean()


def _identity(
    base: Base, adapter: Adapter, concept: Concept, settings: TrainingSettings, prior: TrainingSet | None, crop: str
) -> str:
    """What must agree for a checkpoint to be continued: base, concept, method and settings, as they were given.

    Of the pictures of the class only their shape: drawn anew, they may differ in the last bit.
    """
    facts = {
        "base": base.fingerprint(),
        "noise_schedule": dict(base.noise_schedule.config),
        "dtype": str(base.dtype),
        "concept": [adapter.concept_name, adapter.class_noun, concept.captions],
        "method": [adapter.method.name, asdict(adapter.method)],
        "settings": asdict(replace(settings, checkpointing_steps=1)),
        "class_pictures": list(prior.latents.shape) if prior else None,
    }
    if crop != "square":  # which older checkpoints do not name
        facts["crop"] = crop
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for picture in (*concept.images, *concept.masks):
        digest.update(picture.tobytes() if picture else b"none")
    return digest.hexdigest()
