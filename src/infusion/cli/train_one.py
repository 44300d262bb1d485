"""The options of a training -> an adapter file of one concept, and a page where one is wanted."""

import dataclasses
import json
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from infusion.cli.interrupt import INTERRUPTED, interruptible
from infusion.cli.options import PRECISIONS, check_captions, check_choice, load_base_on, watching_encoders
from infusion.cli.prepare import find_masks
from infusion.cli.train_options import ReadSettings, TrainOptions
from infusion.errors import UserError, all_at_once, noting

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from infusion.base import Base
    from infusion.concepts.concept import Concept
    from infusion.concepts.masks import SubjectMask
    from infusion.methods.adapter import Adapter
    from infusion.methods.method import Method
    from infusion.pages.training_page import Preview
    from infusion.training.loop import Progress
    from infusion.training.processes import Processes
    from infusion.training.settings import TrainingSettings
    from infusion.training.showcase import TrainingRecord
    from infusion.training.stopping import Kept, SelfCheck

_PREVIEW_SEEDS = range(4)


def train_one(options: TrainOptions, read_settings: ReadSettings) -> None:
    """Learn one concept; everything that is wrong with what was given is reported before anything is loaded."""
    from infusion.terminal import plain_console

    run = _checked(options, read_settings)
    console = plain_console(quiet=not run.team.is_first)
    if run.team.is_first:
        run.warn()
    console.print(_described(run.concept))
    if options.dry_run:
        console.print(run.resolved())
        return
    run.learn(console)


def _checked(options: TrainOptions, read_settings: ReadSettings) -> "_Run":
    from infusion.concepts.crop import CROPS
    from infusion.files import check_writable
    from infusion.training.processes import processes

    mistakes: list[str] = []
    output = options.output
    with noting(mistakes):
        team = processes(options.report_to, Path("logs"), options.device)
        if options.stop == "auto" and team.num > 1:
            raise UserError("--stop auto works in one process: leave it out, or train without accelerate launch.")
    with noting(mistakes):
        method, settings = read_settings()
    with noting(mistakes):
        concept = _read_concept(options.folder, options.class_noun, options.name, options.masks)
        output = output or Path(f"{concept.name}.safetensors")
    for name, allowed in (("mixed_precision", PRECISIONS), ("crop", CROPS), ("stop", ("last", "auto"))):
        with noting(mistakes):
            check_choice(name, getattr(options, name), allowed)
    with noting(mistakes):
        _check_output(output)
    with noting(mistakes):
        if options.page is not None:
            check_writable(options.page)
    if mistakes:
        raise all_at_once(mistakes, "this command")
    assert output is not None
    return _Run(options, team, method, settings, concept, output)


@dataclass
class _Run:
    """One training from here to its file. masks: where the subject is; None where images are learnt whole."""

    options: TrainOptions
    team: "Processes"
    method: "Method"
    settings: "TrainingSettings"
    concept: "Concept"
    output: Path
    masks: "Sequence[SubjectMask] | None" = None

    @property
    def checkpoint(self) -> Path:
        return self.output.with_suffix(".checkpoint.safetensors")

    @property
    def kept_path(self) -> Path:
        """Where the best step so far is kept."""
        return self.checkpoint.with_suffix(".kept.safetensors")

    def warn(self) -> None:
        for warning in self.concept.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if self.options.masks is not None and not self.method.masked_loss:
            print(
                f"warning: --masks is not used: {self.method.name} needs --masked-loss to learn by masks.",
                file=sys.stderr,
            )

    def resolved(self) -> str:
        """All that would be used, as lines of TOML."""
        values = {"method": self.method.name, **dataclasses.asdict(self.method), **dataclasses.asdict(self.settings)}
        values |= {"base": self.options.base, "output": str(self.output)}
        values |= {name: getattr(self.options, name) for name in ("mixed_precision", "segmenter", "crop")}
        return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())

    def learn(self, console: "Console") -> None:
        self._begin(console)
        base = self._base(console)
        self._find_masks(console, base)
        adapter = self.method.adapter(base, self.concept)
        try:
            record = self._train(console, base, adapter)
        except KeyboardInterrupt:
            resumable = f"What was learnt is kept in {self.checkpoint}; the same command goes on from there."
            console.print(f"Interrupted. {resumable if self.checkpoint.exists() else 'Nothing was learnt yet.'}")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            self.team.close()
        if self.team.is_first:
            self._write(console, base, adapter, record)

    def _begin(self, console: "Console") -> None:
        if self.checkpoint.exists() and self.options.resume:
            console.print(f"Going on from {self.checkpoint}; --no-resume starts anew.")
        elif self.team.is_first:
            _remove(self.checkpoint, self.kept_path)
        self.team.wait()

    def _base(self, console: "Console") -> "Base":
        options = self.options
        device = self.team.device or options.device
        base = load_base_on(console, options.base, device, PRECISIONS[options.mixed_precision], options.base_config)
        if options.gradient_checkpointing:
            base.network.enable_gradient_checkpointing()
        return base

    def _find_masks(self, console: "Console", base: "Base") -> None:
        from infusion.concepts.masks import subject_masks

        if self.method.masked_loss:
            self.concept = find_masks(self.concept, base, self.options.segmenter)
            self.masks = subject_masks(base, self.concept, self.options.crop)
        console.print(_described_masks(self.masks) if self.masks else "The images are learnt whole, without masks.")

    def _train(self, console: "Console", base: "Base", adapter: "Adapter") -> "TrainingRecord":
        from infusion.training.loop import train

        options, rule, preview = self.options, None, None
        if options.stop == "auto":
            rule = _stop_rule(console, base, self.concept, options.clip, options.encoder, self.kept_path)
        settings = dataclasses.asdict(self.method) | dataclasses.asdict(self.settings)
        self.team.report({"method": self.method.name} | settings)
        prior = _class_latents(console, base, adapter)
        given = (self.settings, self.checkpoint, self.masks, prior, options.crop, self.team)
        steps = train(base, adapter, self.concept, *given)
        if self.team.is_first and options.preview_steps:
            preview = partial(_preview, base, adapter, self.output.with_suffix(".previews"), options.preview_steps)
        return _with_progress(console, steps, adapter, rule, preview, self.team)

    def _write(self, console: "Console", base: "Base", adapter: "Adapter", record: "TrainingRecord") -> None:
        from infusion.methods.adapter_file import save_adapter

        options = self.options
        used = dataclasses.asdict(self.settings) | {"mixed_precision": options.mixed_precision, "crop": options.crop}
        about = used | {"num_images": len(self.concept.images), "seconds": round(record.seconds, 1)}
        if record.kept_step is not None:
            about |= {"stop": options.stop, "kept_step": record.kept_step}
        record.file_bytes = save_adapter(adapter, self.output, base, training=about)
        _remove(self.checkpoint, self.kept_path)
        console.print(f"{self.output}: {record.file_bytes:,} bytes, {adapter.num_parameters:,} parameters.")
        if options.page is not None:
            self._write_page(console, base, adapter, record, used)
        words = ["infusion", "generate", f"a {self.concept.placeholder} on the beach", "--concept", str(self.output)]
        console.print(f"Try: {shlex.join(words)} --seed 0..7 -o out")
        if loader := adapter.method.diffusers_loader:
            call = f'pipe.{loader}("{self.output}")'
            console.print(f'In diffusers: {call}; a prompt then says "{adapter.diffusers_words}".')

    def _write_page(
        self, console: "Console", base: "Base", adapter: "Adapter", record: "TrainingRecord", used: dict[str, Any]
    ) -> None:
        from infusion.pages.training_page import write_page
        from infusion.training.showcase import training_page

        assert self.options.page is not None
        console.print("Drawing the page ...")
        page = training_page(base, adapter, self.concept, self.masks, record, used, self.options.crop)
        write_page(page, self.options.page)
        console.print(f"{self.options.page}: what was learnt, beside the base model.")


def _read_concept(folder: Path, class_noun: str | None, name: str | None, masks: Path | None) -> "Concept":
    from infusion.concepts.concept import load_concept

    concept = load_concept(folder, class_noun, name, masks)
    check_captions(concept)
    return concept


def _check_output(output: Path | None) -> None:
    from infusion.files import check_writable

    if output is None:  # its name was to come from a concept that could not be read
        return
    if output.suffix != ".safetensors":
        raise UserError(f"The adapter file {output} must be called something.safetensors.")
    check_writable(output)


def _with_progress(
    console: "Console",
    training: "Generator[Progress, None, None]",
    adapter: "Adapter",
    rule: "tuple[SelfCheck, Kept] | None",
    preview: "Callable[[int], list[Preview]] | None",
    team: "Processes",
) -> "TrainingRecord":
    """Train with a progress bar. KeyboardInterrupt, with a checkpoint written, when it was asked to stop.

    preview: the images to show of a step, if any.
    """
    from infusion.pages.numbers import format_seconds
    from infusion.terminal import progress_bar
    from infusion.training.showcase import TrainingRecord
    from infusion.training.stopping import train_until_best

    record = TrainingRecord()
    recent: deque[float] = deque(maxlen=50)
    started = time.monotonic()
    steps = train_until_best(training, adapter, *rule) if rule else ((now, None) for now in training)
    kept = rule[1] if rule else None
    # Closing it writes the checkpoint.
    with interruptible() as asked_to_stop, progress_bar(console, "Learning") as advance, closing(training):
        for now, check in steps:
            recent.append(now.loss)
            record.losses.append((now.step, now.loss))
            record.images_per_second = now.images_per_second
            speed = f"{now.images_per_second:.1f} images/s, {format_seconds(now.seconds_left)} left"
            advance(now.step, now.max_train_steps, f"loss {sum(recent) / len(recent):.4f}, {speed}")
            if preview:
                record.previews += preview(now.step)
            if check and kept:
                found = f"learnt {check.learnt:.0%}, prompt followed {check.followed:.0%}"
                console.print(f"Step {check.step}: {found}; best so far: step {kept.best.step}.")
            if team.any(asked_to_stop()) and now.step < now.max_train_steps:
                raise KeyboardInterrupt
    if kept and kept.states:
        record.kept_step = kept.best.step
        console.print(f"Kept: step {kept.best.step} of {kept.checks[-1].step}, the best by its own images.")
    record.seconds = time.monotonic() - started
    return record


def _stop_rule(
    console: "Console", base: "Base", concept: "Concept", clip: str | None, encoder: str | None, kept_path: Path
) -> "tuple[SelfCheck, Kept]":
    """Who looks at the images of a training that stops by itself, and what it found before."""
    from infusion.metrics.encoders import load_clip, load_image_encoder
    from infusion.training.stopping import Kept, SelfCheck, looked_with

    names = watching_encoders(base.id, clip, encoder)
    kept = Kept(kept_path, looked_with(*names))
    console.print(f"Images are looked at by {' and '.join(dict.fromkeys(names))}.")
    rule = SelfCheck(base, concept, load_clip(names[0], base.device), load_image_encoder(names[1], base.device))
    return rule, kept


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _class_latents(console: "Console", base: "Base", adapter: "Adapter") -> "Tensor | None":
    """The images of the class that prior preservation trains beside the concept; None for methods without it."""
    from infusion.training.loop import draw_class

    method = adapter.method
    if method.prior_preservation_weight == 0:
        return None
    console.print(f"Drawing {method.num_class_images} images of the class, so that it is kept ...")
    return draw_class(base, adapter.class_noun, method.num_class_images)


def _preview(base: "Base", adapter: "Adapter", previews_dir: Path, every: int, step: int) -> "list[Preview]":
    """Images after every so many steps, also written into a folder."""
    from infusion.files import save_png
    from infusion.generation.pipeline import generate as generate_images
    from infusion.pages.images import grid
    from infusion.pages.training_page import Preview

    if step % every:
        return []
    images = generate_images(base, f"a photo of a <{adapter.concept_name}>", [adapter], _PREVIEW_SEEDS)
    save_png(grid(images, columns=len(images)), previews_dir / f"step-{step:06}.png")
    return [Preview(step, images)]


def _described(concept: "Concept") -> str:
    number = len(concept.images)
    captions = sum(caption is not None for caption in concept.captions)
    told = f"{concept.placeholder}: {number} image{'s' if number > 1 else ''} of one {concept.class_noun}"
    return told + (f", {captions} with captions." if captions else ".")


def _described_masks(masks: "Sequence[SubjectMask]") -> str:
    """Where the masks come from and how much of the images they cover."""
    sources = [mask.source for mask in masks]
    words = {
        "given": "given",
        "alpha": "from the alpha channel",
        "clipseg": "by CLIPSeg",
        "attention": "from the base model's attention",
    }
    counts = ", ".join(f"{sources.count(source)} {words[source]}" for source in dict.fromkeys(sources))
    shares = [100 * mask.coverage for mask in masks]
    mean = sum(shares) / len(shares)
    return f"Masks: {counts}; they cover {mean:.0f}% of the images ({min(shares):.0f} to {max(shares):.0f}%)."
