"""Base + many concepts -> as many trained adapters: rows of every concept in one forward pass."""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from infusion.base import Base
from infusion.base.customization import Edited
from infusion.base.denoising import Batch, squared_error
from infusion.base.frozen_convolutions import lean_convolutions
from infusion.concepts.concept import Concept
from infusion.errors import UserError
from infusion.methods.adapter import Adapter
from infusion.training.loop import (
    Drawn,
    Learner,
    Progress,
    diverged,
    finite_gradients,
    unscale,
)
from infusion.training.settings import TrainingSettings

CONCEPTS_PER_BATCH = 8


@dataclass(frozen=True)
class Job:
    """One concept to learn: what `train` is given for it alone."""

    adapter: Adapter
    concept: Concept
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    checkpoint_path: Path | None = None
    crop: str = "square"


def train_together(
    base: Base, jobs: Iterable[Job], concepts_per_batch: int = CONCEPTS_PER_BATCH
) -> Generator[tuple[Job, Progress | UserError], None, None]:
    """Train every job's adapter in place, as `train` would alone, up to rounding: each draws its own batches by its own
    seed, and has a loss, an optimiser and a learning rate of its own. Shared is the pass through the network.

    Up to `concepts_per_batch` are trained at a time. When one is done the next is taken from `jobs`, which may be
    endless. Yields after every optimiser step of every job. A job that cannot be trained, or diverges, leaves with its
    error in the place of its progress; the others go on. One whose checkpoint is of its last step already is yielded
    once, with no loss (nan). A job's last checkpoint is written before its last progress is yielded; leaving the loop
    early writes those of all that are in training.
    """
    base.freeze()
    waiting = iter(jobs)
    active: list[tuple[Job, Learner]] = []
    try:
        while True:
            while len(active) < concepts_per_batch and (job := next(waiting, None)):
                try:
                    learner = _learner(base, job, [other for other, _ in active])
                except UserError as error:
                    yield job, error
                    continue
                if learner.is_done:
                    yield job, Progress(learner.step, learner.max_train_steps, math.nan, 0, 0)
                else:
                    active.append((job, learner))
            if not active:
                return
            yield from _step(base, active)
    finally:
        for _, learner in active:
            learner.save()


def _learner(base: Base, job: Job, others: Sequence[Job]) -> Learner:
    method, name = job.adapter.method, job.adapter.concept_name
    if not (method.trains_together or method.learns_jointly):
        raise UserError(
            f"{method.name} changes the network for all rows of a batch, so that its concepts are trained one by one: "
            f"train <{name}> alone, or by infusion."
        )
    if not method.learns_jointly and type(job.adapter).loss is not Adapter.loss:
        raise UserError(f"{method.name} has a loss of its own, which is not one of rows: train <{name}> alone.")
    methods = [method, *(other.adapter.method for other in others)]
    if any(one.learns_jointly for one in methods) and any(one != method for one in methods):
        names = ", ".join(dict.fromkeys(one.name for one in methods))
        raise UserError(f"Concepts that are learnt jointly have one method and one set of settings; here are: {names}.")
    if any(other.adapter.concept_name == name for other in others):
        raise UserError(f'Two concepts that are trained together are called "{name}"; give one another name.')
    return Learner(base, job.adapter, job.concept, job.settings, job.checkpoint_path, crop=job.crop)


def _step(base: Base, active: list[tuple[Job, Learner]]) -> Iterator[tuple[Job, Progress | UserError]]:
    """One optimiser step of every job; those that are done leave."""
    learners = [learner for _, learner in active]
    losses = torch.stack(_gradients(base, learners))
    finite = torch.stack([finite_gradients(learner.adapter) for learner in learners])
    figures = torch.stack([losses, finite], dim=1).tolist()  # the host waits for the device here, once
    for (job, learner), (loss, is_finite) in zip(tuple(active), figures, strict=True):
        if not is_finite:
            active.remove((job, learner))
            yield job, diverged(learner.step)
            continue
        progress = learner.update(loss)
        if learner.is_done:
            active.remove((job, learner))
        if learner.is_done or learner.step % job.settings.checkpointing_steps == 0:
            learner.save()
        yield job, progress


def _gradients(base: Base, learners: Sequence[Learner]) -> list[Tensor]:
    """Backward passes of one optimiser step of each; returns their losses."""
    losses: list[list[Tensor]] = [[] for _ in learners]
    for draws in zip_longest(*(learner.draws() for learner in learners)):  # some accumulate more batches than others
        there = [(i, drawn) for i, drawn in enumerate(draws) if drawn]
        for shape in dict.fromkeys(drawn.batch.latents.shape[1:] for _, drawn in there):
            rows = [(i, drawn) for i, drawn in there if drawn.batch.latents.shape[1:] == shape]
            shares = _backward(base, [learners[i] for i, _ in rows], [drawn for _, drawn in rows])
            for (i, _), loss in zip(rows, shares, strict=True):
                losses[i].append(loss)
    for learner in learners:
        unscale(learner.adapter, learner.loss_scale)
    return [torch.stack(some).sum() for some in losses]


def _backward(base: Base, learners: Sequence[Learner], draws: Sequence[Drawn]) -> Sequence[Tensor]:
    """One pass for the rows of all; each one's loss is the mean over its own rows, and moves its own adapter only.

    Where the method learns its concepts jointly, the loss is the method's, over all; each is told the whole.
    """
    adapters = [learner.adapter for learner in learners]
    method, batches = adapters[0].method, [drawn.batch for drawn in draws]
    with lean_convolutions(base.network), base.customized(*_training_edits(base, adapters, draws)) as denoiser:
        if method.learns_jointly:
            losses = method.joint_loss(base, denoiser, adapters, batches).expand(len(learners)) / len(learners)
        else:
            errors = squared_error(base, denoiser, Batch.joined(batches))
            losses = torch.stack([error.mean() for error in errors.split([len(batch.latents) for batch in batches])])
        accumulated = [learner.settings.gradient_accumulation_steps for learner in learners]
        losses = losses / torch.tensor(accumulated, device=losses.device)
        (losses.sum() * learners[0].loss_scale).backward()  # the base's, and so the same for all
    return losses.detach().unbind()


def _training_edits(base: Base, adapters: Sequence[Adapter], draws: Sequence[Drawn]) -> Iterator[Edited]:
    """Of each adapter, for its own rows of the joined batch."""
    first = 0
    for adapter, drawn in zip(adapters, draws, strict=True):
        rows = range(first, first + len(drawn.batch.latents))
        yield Edited(adapter.concept_name, adapter.training_edits(base, rows, drawn.by_chance))
        first = rows.stop
