"""Words on a command line + a folder of concept folders -> an adapter file of each: `infusion train`, for many."""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from infusion.cli.interrupt import INTERRUPTED, terminable
from infusion.cli.options import PRECISIONS, check_captions, check_choice, load_base_on
from infusion.cli.prepare import find_masks
from infusion.cli.train_options import ReadSettings, TrainOptions
from infusion.errors import UserError, all_at_once, noting

if TYPE_CHECKING:
    from rich.console import Console

    from infusion.base import Base
    from infusion.concepts.concept import Concept
    from infusion.concepts.list import Listed
    from infusion.methods.adapter import Adapter
    from infusion.methods.method import Method
    from infusion.training.loop import Progress
    from infusion.training.settings import TrainingSettings
    from infusion.training.together import Job

_OF_ONE = ("name", "masks", "page", "preview_steps", "clip", "encoder", "report_to")


def train_folder(options: TrainOptions, read_settings: ReadSettings) -> None:
    """Learn every concept of a folder or list, several at a time.

    Raises:
        UserError: something given is wrong, reported before anything is loaded; some concepts could not be learnt,
            reported after the others were.
    """
    from infusion.concepts.crop import CROPS
    from infusion.concepts.list import listed_concepts
    from infusion.files import check_writable
    from infusion.terminal import plain_console
    from infusion.training.processes import processes

    mistakes: list[str] = []
    folder, output_dir = options.folder, options.output or Path("adapters")
    precision, crop = options.mixed_precision, options.crop
    concepts: Sequence[Listed] = ()
    with noting(mistakes):
        method, training = read_settings()
        if not (method.trains_together or method.learns_jointly):
            raise UserError(
                f"{method.name} trains one concept at a time: give one of the folders in {folder}, or leave --method "
                "out."
            )
    with noting(mistakes):
        _check_options(options)
    with noting(mistakes):
        if processes(None, None, options.device).num > 1:
            raise UserError("Concepts are trained together in one process: start it without accelerate launch.")
    with noting(mistakes):
        check_choice("mixed_precision", precision, PRECISIONS)
    with noting(mistakes):
        check_choice("crop", crop, CROPS)
    with noting(mistakes):
        if output_dir.suffix == ".safetensors":
            raise UserError(
                f"{folder} holds several concepts: give a folder for their files in the place of {output_dir}."
            )
        check_writable(output_dir / "any.safetensors")
    with noting(mistakes):
        concepts = listed_concepts(folder, options.class_noun, check_captions)
    if mistakes:
        raise all_at_once(mistakes, "this command")

    run = _Run(concepts, method, training, output_dir, crop, precision, options.segmenter, options.resume)
    _learn(plain_console(), run, options)


def _learn(console: "Console", run: "_Run", options: TrainOptions) -> None:
    """Learn what is not there yet."""
    concepts, output_dir = run.concepts, run.output_dir
    if there := len(concepts) - len(run.waiting):
        console.print(f"{there} of {len(concepts)} are in {output_dir} already; --no-resume makes them anew.")
    for one in run.waiting:
        console.print(f"<{one.name}>, a {one.class_noun}: {run.path(str(one.name))}")
    if options.dry_run or not run.waiting:
        return
    precision = PRECISIONS[options.mixed_precision]
    base = load_base_on(console, options.base, options.device, precision, options.base_config)
    if options.gradient_checkpointing:
        base.network.enable_gradient_checkpointing()
    try:
        run.learn(console, base, options.concepts_per_batch)
    except KeyboardInterrupt:
        console.print(f"Interrupted. What was learnt is kept in {output_dir}; the same command goes on from there.")
        raise typer.Exit(INTERRUPTED) from None
    console.print(f"{len(run.files)} of {len(run.waiting)} concepts learnt, one file each, in {output_dir}.")
    if run.mistakes:
        raise all_at_once(run.mistakes, str(options.folder))


def _check_options(options: TrainOptions) -> None:
    folder = options.folder
    wrong = [f"--{name.replace('_', '-')}" for name in _OF_ONE if getattr(options, name) is not None]
    wrong += ["--stop"] if options.stop != "last" else []
    if wrong:
        raise UserError(f"{folder} holds several concepts, and {', '.join(wrong)} can be said of one: leave it out.")


@dataclass
class _Run:
    """The concepts of one command. files: those made, with the seconds each took. mistakes: why others were not."""

    concepts: "Sequence[Listed]"
    method: "Method"
    settings: "TrainingSettings"
    output_dir: Path
    crop: str
    mixed_precision: str
    segmenter: str
    resume: bool
    files: list[Path] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = [one for one in self.concepts if not (self.resume and self.path(str(one.name)).exists())]
        if self.waiting and self.method.learns_jointly:
            self.waiting = list(self.concepts)
        self._joined: dict[str, float] = {}

    def path(self, name: str) -> Path:
        return self.output_dir / f"{name}.safetensors"

    def learn(self, console: "Console", base: "Base", concepts_per_batch: int) -> None:
        """Train all; KeyboardInterrupt, with checkpoints written, when it was asked to stop."""
        from infusion.terminal import progress_bar
        from infusion.training.together import train_together

        at_once = len(self.waiting) if self.method.learns_jointly else concepts_per_batch
        steps = train_together(base, self._jobs(base), at_once)
        pace = _Pace(len(self.waiting), self.method.max_train_steps)
        with terminable(), progress_bar(console, "Learning") as advance, closing(steps):
            for job, now in steps:
                name = job.concept.name
                if isinstance(now, UserError):
                    self.mistakes.append(f"<{name}>: {now}")
                    pace.lost(name)
                else:
                    pace.made(name, now)
                    if now.step >= now.max_train_steps:
                        self._finish(base, job)
                advance(len(self.files) + len(self.mistakes), len(self.waiting), pace.told())

    def _jobs(self, base: "Base") -> "Iterator[Job]":
        """Images are read when there is room for them; of concepts that are learnt jointly, all at once."""
        if self.method.learns_jointly:
            concepts = [self._concept(base, listed) for listed in self.waiting]
            yield from map(self._job, concepts, self.method.adapters(base, concepts))
            return
        for listed in self.waiting:
            with noting(self.mistakes, f"<{listed.name}>: "):
                concept = self._concept(base, listed)
                yield self._job(concept, self.method.adapter(base, concept))

    def _concept(self, base: "Base", listed: "Listed") -> "Concept":
        concept = listed.load()
        for warning in concept.warnings:
            print(f"warning: <{concept.name}>: {warning}", file=sys.stderr)
        return find_masks(concept, base, self.segmenter) if self.method.masked_loss else concept

    def _job(self, concept: "Concept", adapter: "Adapter") -> "Job":
        from infusion.training.together import Job

        checkpoint = self.path(concept.name).with_suffix(".checkpoint.safetensors")
        if not self.resume:
            checkpoint.unlink(missing_ok=True)
        self._joined[concept.name] = time.monotonic()
        return Job(adapter, concept, self.settings, checkpoint, self.crop)

    def _finish(self, base: "Base", job: "Job") -> None:
        from infusion.methods.adapter_file import save_adapter

        seconds = round(time.monotonic() - self._joined.pop(job.concept.name), 1)
        about = dataclasses.asdict(self.settings) | {"mixed_precision": self.mixed_precision, "crop": self.crop}
        path = self.path(job.concept.name)
        about |= {"num_images": len(job.concept.images), "seconds": seconds}
        save_adapter(job.adapter, path, base, training=about)
        self.files.append(path)
        if job.checkpoint_path:
            job.checkpoint_path.unlink(missing_ok=True)


class _Pace:
    """Steps made of those wanted -> concepts an hour, and the time left."""

    def __init__(self, num_concepts: int, max_train_steps: int) -> None:
        self._per_concept = max_train_steps
        self._left = num_concepts * max_train_steps
        self._at: dict[str, int] = {}
        self._made = 0
        self._started = time.monotonic()

    def made(self, name: str, now: "Progress") -> None:
        """A step, or the news that a checkpoint held all of them."""
        self._left -= now.step - self._at.get(name, 0)
        self._at[name] = now.step
        self._made += 1

    def lost(self, name: str) -> None:
        self._left -= self._per_concept - self._at.get(name, 0)

    def told(self) -> str:
        from infusion.pages.numbers import format_seconds

        if not self._made:
            return ""
        per_step = (time.monotonic() - self._started) / self._made
        return f"{3600 / per_step / self._per_concept:.1f} concepts/h, {format_seconds(self._left * per_step)} left"
