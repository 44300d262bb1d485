"""Words on a command line -> files: `infusion train`, `generate`, `show`, `demo`, and those of the other modules."""

import dataclasses
import json
import os
import shlex
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from infusion.cli.audit import audit
from infusion.cli.benchmark import benchmark, report
from infusion.cli.options import BASES, PRECISIONS, BaseConfigOption, check_choice, load_base_on, watching_encoders
from infusion.cli.prepare import CropOption, SegmenterOption, find_masks, prepare
from infusion.cli.push import push
from infusion.cli.toybox import toybox
from infusion.cli.train_folder import train_folder
from infusion.errors import UserError, all_at_once, noting
from infusion.toybox.scene import FIRST_RESERVED_CONCEPT

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from torch import Tensor

    from infusion.base import Base
    from infusion.concepts.concept import Concept
    from infusion.concepts.masks import SubjectMask
    from infusion.methods.adapter import Adapter
    from infusion.pages.training_page import Preview
    from infusion.training.loop import Progress
    from infusion.training.processes import Processes
    from infusion.training.showcase import TrainingRecord
    from infusion.training.stopping import Kept, SelfCheck

MAX_SEEDS = 10_000
DEMO_LEARNING_RATE = "0.03"  # the embedded model wants more than the published 0.01
_GRID_ROWS, _GRID_COLUMNS = 16, 8
_PREVIEW_SEEDS = range(4)
_INTERRUPTED = 130
_DEFAULT_METHOD = "infusion"

app = typer.Typer(
    help="Teach a diffusion model one thing from a few pictures, and see what that did to everything else it knows.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(toybox, name="toybox")


def main() -> None:
    """The entry point. A person's mistakes become one sentence and exit code 1; our own keep a traceback."""
    _quieten()
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, without importing torch
            raise
        _fail("The device ran out of memory. Use a smaller batch size, a smaller base, or --device cpu.")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _quieten() -> None:
    """The one place that silences what torch, diffusers and transformers say about themselves."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    warnings.filterwarnings("ignore", module=r"(torch|diffusers|transformers|huggingface_hub)\b")


class _SettingsCommand(TyperCommand):
    """A command some of whose flags are settings: their help is read where the settings are declared."""

    def format_help(self, *args: Any) -> None:
        explained = _explained_settings()
        for param in self.params:
            if param.name in explained:
                param.help = explained[param.name]  # type: ignore[attr-defined]
        self.epilog = "Other methods have settings of their own, for --set and --config: --dry-run prints them all."
        super().format_help(*args)


Setting = Annotated[str | None, typer.Option(metavar="VALUE", show_default=False)]
DeviceOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps ... [default: the fastest there is]"),
]


@app.command(cls=_SettingsCommand)
def train(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            help="The folder of pictures; or a folder of such folders, or a JSON list, of concepts to learn together.",
            show_default=False,
        ),
    ],
    class_noun: Annotated[
        str | None,
        typer.Option(
            help="What kind of thing it is, in the base model's words: cat. [default: what the folder says, if it does]"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What prompts call it: my-cat, for <my-cat>. [default: the folder's name]"),
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", show_default=False)] = None,
    base: Annotated[str, typer.Option(metavar="NAME", help=BASES)] = "toybox",
    base_config: BaseConfigOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The adapter file, or of several concepts their folder. [default: NAME.safetensors, or adapters]",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Masks with the names of the pictures; white is learnt."),
    ] = None,
    segmenter: SegmenterOption = "auto",
    crop: CropOption = "square",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in a TOML file: one name = value a line.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, also those without a flag; repeatable."),
    ] = None,
    # Settings: None is "not given". Their explanation and defaults stand in their dataclasses.
    learning_rate: Setting = None,
    max_train_steps: Setting = None,
    layers: Setting = None,
    streams: Setting = None,
    mixing_probability: Setting = None,
    keys: Annotated[bool | None, typer.Option("--keys/--no-keys", show_default=False)] = None,
    masked_loss: Annotated[bool | None, typer.Option("--masked-loss/--no-masked-loss", show_default=False)] = None,
    train_batch_size: Setting = None,
    gradient_accumulation_steps: Setting = None,
    lr_scheduler: Setting = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", show_default=False)] = None,
    seed: Setting = None,
    checkpointing_steps: Setting = None,
    mixed_precision: Annotated[
        str,
        typer.Option(help="Precision of the frozen weights: no, fp16 or bf16; what is learnt stays in fp32."),
    ] = "no",
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Less memory, more time: layers run again for gradients."),
    ] = False,
    preview_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps between preview pictures. [default: none]")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on from the checkpoint of an interrupted run, if there is one.")
    ] = True,
    stop: Annotated[
        str,
        typer.Option(
            help='Which step is kept: "last", or "auto": every 25 steps the training looks at pictures of its own, '
            "keeps the best step, and ends when nothing gets better."
        ),
    ] = "last",
    clip: Annotated[
        str | None, typer.Option(metavar="NAME", help="The CLIP that --stop auto looks with. [default: by the base]")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="The encoder that --stop auto looks with. [default: by the base]")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw pictures and show them on one HTML page.")
    ] = None,
    report_to: Annotated[
        str | None, typer.Option(metavar="TRACKER", help="tensorboard, wandb, trackio ...: where losses are shown.")
    ] = None,
    concepts_per_batch: Annotated[
        int, typer.Option(min=1, help="Of several concepts, how many are trained at a time, each with its own batch.")
    ] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print what would be done.")] = False,
    device: DeviceOption = None,
) -> None:
    """Learn one concept from a folder of pictures, or many from a folder of such folders."""
    from infusion.concepts.list import holds_concepts
    from infusion.files import check_writable
    from infusion.terminal import plain_console
    from infusion.training.processes import processes

    if holds_concepts(folder):
        settings_given = partial(_settings, context.params, set_ or [], config)
        train_folder(folder, context.params, settings_given, _check_captions)
        return
    mistakes: list[str] = []
    with noting(mistakes):
        team = processes(report_to, Path("logs"), device)
        if stop == "auto" and team.num > 1:
            raise UserError("--stop auto works in one process: leave it out, or train without accelerate launch.")
    with noting(mistakes):
        recipe, settings = _settings(context.params, set_ or [], config)
    with noting(mistakes):
        concept = _read_concept(folder, class_noun, name, masks)
        output = output or Path(f"{concept.name}.safetensors")
    with noting(mistakes):
        check_choice("mixed_precision", mixed_precision, PRECISIONS)
    with noting(mistakes):
        from infusion.concepts.crop import CROPS

        check_choice("crop", crop, CROPS)
    with noting(mistakes):
        check_choice("stop", stop, ("last", "auto"))
    with noting(mistakes):
        _check_output(output)
    with noting(mistakes):
        if page is not None:
            check_writable(page)
    if mistakes:
        raise all_at_once(mistakes, "this command")
    assert output is not None

    first = team.is_first
    console = plain_console(quiet=not first)
    for warning in concept.warnings if first else ():
        print(f"warning: {warning}", file=sys.stderr)
    if first and masks is not None and not recipe.masked_loss:
        print(f"warning: --masks is not used: {recipe.name} needs --masked-loss to learn by masks.", file=sys.stderr)
    console.print(_described(concept))
    if dry_run:
        rest = {"base": base, "output": str(output), "mixed_precision": mixed_precision}
        console.print(_resolved(recipe, settings, **rest, segmenter=segmenter, crop=crop))
        return

    checkpoint = output.with_suffix(".checkpoint.safetensors")
    kept_path = checkpoint.with_suffix(".kept.safetensors")
    if checkpoint.exists() and resume:
        console.print(f"Going on from {checkpoint}; --no-resume starts anew.")
    elif first:
        _remove(checkpoint, kept_path)
    team.wait()
    model = load_base_on(console, base, team.device or device, PRECISIONS[mixed_precision], base_config)
    if gradient_checkpointing:
        model.network.enable_gradient_checkpointing()

    from infusion.concepts.masks import subject_masks
    from infusion.methods.adapter_file import save_adapter
    from infusion.pages.training_page import write_page
    from infusion.training.loop import train as train_steps
    from infusion.training.showcase import training_page

    if recipe.masked_loss:
        concept = find_masks(concept, model, segmenter)
    found = subject_masks(model, concept, crop) if recipe.masked_loss else None
    console.print(_described_masks(found) if found else "The pictures are learnt whole, without masks.")
    adapter = recipe.adapter(model, concept)
    try:
        rule = None
        if stop == "auto":
            rule = _stop_rule(console, model, concept, clip, encoder, kept_path)
        team.report({"method": recipe.name} | dataclasses.asdict(recipe) | dataclasses.asdict(settings))
        prior = _class_latents(console, model, adapter)
        steps = train_steps(model, adapter, concept, settings, checkpoint, found, prior, crop, team)
        previews_dir = output.with_suffix(".previews")
        preview = partial(_preview, model, adapter, previews_dir, preview_steps) if first and preview_steps else None
        record = _learn(console, steps, adapter, rule, preview, team)
    except KeyboardInterrupt:
        resumable = f"What was learnt is kept in {checkpoint}; the same command goes on from there."
        console.print(f"Interrupted. {resumable if checkpoint.exists() else 'Nothing was learnt yet.'}")
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        team.close()
    if not first:
        return
    used = dataclasses.asdict(settings) | {"mixed_precision": mixed_precision, "crop": crop}
    about = used | {"num_images": len(concept.images), "seconds": round(record.seconds, 1)}
    if record.kept_step is not None:
        about |= {"stop": stop, "kept_step": record.kept_step}
    record.file_bytes = save_adapter(adapter, output, model, training=about)
    _remove(checkpoint, kept_path)
    console.print(f"{output}: {record.file_bytes:,} bytes, {adapter.num_parameters:,} parameters.")
    if page is not None:
        console.print("Drawing the page ...")
        write_page(training_page(model, adapter, concept, found, record, used, crop), page)
        console.print(f"{page}: what was learnt, beside the base model.")
    words = ["infusion", "generate", f"a {concept.placeholder} on the beach", "--concept", str(output)]
    console.print(f"Try: {shlex.join(words)} --seed 0..7 -o out")
    if loader := adapter.method.diffusers_loader:
        call = f'pipe.{loader}("{output}")'
        console.print(f'In diffusers: {call}; a prompt then says "{adapter.diffusers_words}".')


@app.command()
def generate(
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT...", help='Such as "a <my-cat> on the beach".', show_default=False),
    ],
    concept: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An adapter file, or user/repo on the Hub; repeatable.", show_default=False),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Where the pictures go.")
    ] = Path("out"),
    seed: Annotated[str, typer.Option(help="One picture of each prompt for every seed: 42, 1,5,9 or 0..7.")] = "0",
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"{BASES} [default: the first concept's]"),
    ] = None,
    base_config: BaseConfigOption = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the pictures are to keep away from.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Steps of the sampler.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="Classifier-free guidance; 1 is none.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures drawn at a time.")] = None,
    lock_until: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the steps that follow the base's attention; less is faster."),
    ] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Accept concepts trained on another base with the same layers.")
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Draw prompts, with concepts in them, one PNG per prompt and seed."""
    from infusion.terminal import plain_console

    console = plain_console()
    files = concept or []
    mistakes: list[str] = []
    seeds: list[int] = []
    with noting(mistakes):
        seeds = parse_seeds(seed)
    with noting(mistakes):
        from infusion.files import check_writable

        check_writable(output_dir / "grid.png")

    from infusion.base.prompts import parse_prompt
    from infusion.methods.adapter_file import load_adapter, read_adapter_file

    made_on: list[str] = []
    class_nouns: dict[str, str] = {}
    for path in files:
        with noting(mistakes):
            about, _ = read_adapter_file(path)
            if about["concept_name"] in class_nouns:
                raise UserError(f"{path} is the second concept called <{about['concept_name']}>; give one of them.")
            class_nouns[about["concept_name"]] = about["class_noun"]
            made_on.append(about["base"]["id"])
    if len(class_nouns) == len(files):
        for prompt in prompts:
            with noting(mistakes):
                parse_prompt(prompt, class_nouns)
    unnamed = [name for name in class_nouns if not any(f"<{name}>" in prompt for prompt in prompts)]
    if unnamed and not mistakes:
        name, noun = unnamed[0], class_nouns[unnamed[0]]
        mistakes.append(f'No prompt names <{name}>. Write "a <{name}>"; a plain "{noun}" does not mean it.')
    if mistakes:
        raise all_at_once(mistakes, "this command")

    model = load_base_on(console, base or (made_on[0] if made_on else "toybox"), device, config=base_config)
    adapters = [load_adapter(path, model, any_base) for path in files]
    given = {
        "negative_prompt": negative_prompt,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "batch_size": batch_size,
        "lock_until": lock_until,
    }
    settings = {key: value for key, value in given.items() if value is not None}
    _draw(console, model, prompts, adapters, seeds, settings, output_dir)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="An adapter file, or user/repo on the Hub.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what an adapter file is."""
    from infusion.hub import adapter_path
    from infusion.methods.adapter_file import read_adapter_file

    about, tensors = read_adapter_file(file)
    norms = {name: round(float(tensor.float().norm()), 6) for name, tensor in tensors.items()}
    facts = about | {
        "num_parameters": about.get("num_parameters", sum(tensor.numel() for tensor in tensors.values())),
        "bytes": adapter_path(file).stat().st_size,
        "norms": norms,
    }
    if as_json:
        print(json.dumps(facts, indent=2, sort_keys=True))
        return
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f'<{about["concept_name"]}>, a concept of class noun "{about["class_noun"]}"')
    print(f"  method      {about['method']} ({about['paper']})")
    print(f"  settings    {_listed(about['settings'])}")
    print(f"  training    {_listed(about['training']) or 'not recorded'}")
    print(f"  base        {about['base']['id']}")
    print(f"  size        {facts['num_parameters']:,} parameters, {facts['bytes']:,} bytes")
    print(f"  created     {about['created']} with {versions}")
    print("  norms")
    for name, norm in norms.items():
        print(f"    {norm:10.4f}  {tensors[name].numel():>6}  {name}")


@app.command()
def demo(
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Where the page and all files go.")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, max=FIRST_RESERVED_CONCEPT - 1, help="Which toy is learnt.")] = 1,
) -> None:
    """Teach the embedded model a toy it has never seen, and write a page that shows it."""
    from infusion.concepts.concept import slug
    from infusion.files import check_writable
    from infusion.terminal import plain_console
    from infusion.toybox.concepts import write_concept

    pictures, page = output_dir / "pictures", output_dir / "index.html"
    check_writable(page)
    try:
        class_noun = write_concept(seed, pictures)
    except OSError as error:
        raise UserError(f"The pictures cannot be written to {pictures}: {error.strerror}.") from error
    name = f"my-{slug(class_noun)}"
    adapter = output_dir / f"{name}.safetensors"
    words = [
        "train",
        str(pictures),
        "--class-noun",
        class_noun,
        "--name",
        name,
        "-o",
        str(adapter),
        "--learning-rate",
        DEMO_LEARNING_RATE,
        "--page",
        str(page),
    ]
    console = plain_console()
    console.print(f"Five pictures of a {class_noun} that the embedded model has never seen are in {pictures}. Now:")
    console.print(f"  {shlex.join(['infusion', *words])}")
    if code := app(words, standalone_mode=False):
        raise typer.Exit(code)
    console.print(f"The page: {page.resolve().as_uri()}")


for _command in (prepare, audit, benchmark, report, push):
    app.command()(_command)
app.command("evaluate", hidden=True)(audit)


# --- what is given ---


def parse_seeds(text: str) -> list[int]:
    """Seeds in the order given, each once: "42", "1,5,9", "0..7" (both ends included), "0..3,9"."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dots, last = (side.strip() for side in part.partition(".."))
        numbers = [first, last] if dots else [first]
        if not all(number.isascii() and number.isdigit() and int(number) < 2**63 for number in numbers):
            raise UserError(f'"{text}" names no seeds. Seeds are whole numbers from 0, given as 42, 1,5,9 or 0..7.')
        low, high = int(numbers[0]), int(numbers[-1])
        if high < low:
            raise UserError(f'The seeds "{part.strip()}" run backwards; write {high}..{low}.')
        if high - low >= MAX_SEEDS or len(seeds) + high - low >= MAX_SEEDS:
            raise UserError(f'"{text}" is more than {MAX_SEEDS:,} seeds; at most {MAX_SEEDS:,} are drawn in one go.')
        seeds |= dict.fromkeys(range(low, high + 1))
    return list(seeds)


def merged_settings(flags: dict[str, Any], assignments: Sequence[str], config: Path | None) -> dict[str, Any]:
    """Settings by name: a flag goes before --set, that before the file. Flags that are None say nothing."""
    merged = _read_config(config) if config is not None else {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise UserError(f'--set "{assignment}" is not NAME=VALUE, such as --set learning_rate=0.01.')
        merged[name.strip().replace("-", "_")] = value.strip()
    return merged | {name: value for name, value in flags.items() if value is not None}


def _settings(flags: dict[str, Any], assignments: Sequence[str], config: Path | None) -> Any:
    """The method and the training settings, from all that was given."""
    from infusion.methods import METHODS
    from infusion.settings import parse
    from infusion.training.settings import TrainingSettings

    names = {"method", *(field.name for cls in _classes_with_flags() for field, _ in _fields(cls))}
    given = {name: value for name, value in flags.items() if name in names}
    merged = merged_settings(given, assignments, config)
    method = str(merged.pop("method", _DEFAULT_METHOD))
    check_choice("method", method, METHODS)
    return parse(merged, METHODS[method], TrainingSettings)


def _classes_with_flags() -> tuple[type[Any], ...]:
    """Whose settings have flags; those that only another method has are given by --set."""
    from infusion.methods import METHODS
    from infusion.training.settings import TrainingSettings

    return METHODS[_DEFAULT_METHOD], TrainingSettings


def _explained_settings() -> dict[str, str]:
    """What the settings with flags say of themselves, by name."""
    from infusion.methods import METHODS
    from infusion.methods.method import Method
    from infusion.settings import allowed

    shared = {field.name for field, _ in _fields(Method)}
    explained = {"method": f"How it is learnt: {', '.join(METHODS)}. [default: {_DEFAULT_METHOD}]"}
    for cls in _classes_with_flags():
        for field, hint in _fields(cls):
            about = field.metadata["help"].rstrip(".")
            about += "" if hint in (str, bool) else f"; {allowed(field, hint)}"
            of_method = issubclass(cls, Method)
            only = f" Of {_DEFAULT_METHOD} only." if of_method and field.name not in shared else ""
            others = "; other methods have their own" if of_method and field.name in shared else ""
            explained[field.name] = f"{about}.{only} [default: {field.default}{others}]"
    return explained


def _fields(cls: type[Any]) -> list[tuple["dataclasses.Field[Any]", Any]]:
    from typing import get_type_hints

    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _read_config(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the settings in {path}: {error.strerror}.") from error
    except ValueError as error:  # also what TOML or UTF-8 does not allow
        raise UserError(f"{path} is not a TOML file: {error}.") from error


def _read_concept(folder: Path, class_noun: str | None, name: str | None, masks: Path | None) -> "Concept":
    from infusion.concepts.concept import load_concept

    concept = load_concept(folder, class_noun, name, masks)
    _check_captions(concept)
    return concept


def _check_captions(concept: "Concept") -> None:
    from infusion.base.prompts import name_concept

    mistakes: list[str] = []
    for source, caption in zip(concept.sources, concept.captions, strict=True):
        with noting(mistakes, f"{source}: "):
            name_concept(caption or concept.placeholder, concept.placeholder, concept.class_noun)
    if mistakes:
        raise all_at_once(mistakes, "the captions")


def _check_output(output: Path | None) -> None:
    from infusion.files import check_writable

    if output is None:  # its name was to come from a concept that could not be read
        return
    if output.suffix != ".safetensors":
        raise UserError(f"The adapter file {output} must be called something.safetensors.")
    check_writable(output)


# --- what is done ---


def _learn(
    console: "Console",
    training: "Generator[Progress, None, None]",
    adapter: "Adapter",
    rule: "tuple[SelfCheck, Kept] | None",
    preview: "Callable[[int], list[Preview]] | None",
    team: "Processes",
) -> "TrainingRecord":
    """Train with a progress bar. KeyboardInterrupt, with a checkpoint written, when it was asked to stop.

    preview: the pictures to show of a step, if any.
    """
    from infusion.pages.training_page import format_seconds
    from infusion.terminal import progress_bar
    from infusion.training.showcase import TrainingRecord
    from infusion.training.stopping import train_until_best

    record = TrainingRecord()
    recent: deque[float] = deque(maxlen=50)
    started = time.monotonic()
    steps = train_until_best(training, adapter, *rule) if rule else ((now, None) for now in training)
    kept = rule[1] if rule else None
    # Closing it writes the checkpoint.
    with _interruptible() as asked_to_stop, progress_bar(console, "Learning") as advance, closing(training):
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
        console.print(f"Kept: step {kept.best.step} of {kept.checks[-1].step}, the best by its own pictures.")
    record.seconds = time.monotonic() - started
    return record


def _stop_rule(
    console: "Console", base: "Base", concept: "Concept", clip: str | None, encoder: str | None, kept_path: Path
) -> "tuple[SelfCheck, Kept]":
    """Who looks at the pictures of a training that stops by itself, and what it found before."""
    from infusion.metrics.encoders import load_clip, load_image_encoder
    from infusion.training.stopping import Kept, SelfCheck, looked_with

    names = watching_encoders(base.id, clip, encoder)
    kept = Kept(kept_path, looked_with(*names))
    console.print(f"Pictures are looked at by {' and '.join(dict.fromkeys(names))}.")
    rule = SelfCheck(base, concept, load_clip(names[0], base.device), load_image_encoder(names[1], base.device))
    return rule, kept


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _class_latents(console: "Console", base: "Base", adapter: "Adapter") -> "Tensor | None":
    """The pictures of the class that prior preservation trains beside the concept; None for methods without it."""
    from infusion.training.loop import draw_class

    method = adapter.method
    if method.prior_preservation_weight == 0:
        return None
    console.print(f"Drawing {method.num_class_images} pictures of the class, so that it is kept ...")
    return draw_class(base, adapter.class_noun, method.num_class_images)


def _preview(base: "Base", adapter: "Adapter", previews_dir: Path, every: int, step: int) -> "list[Preview]":
    """Pictures after every so many steps, also written into a folder."""
    from infusion.files import save_png
    from infusion.generation.pipeline import generate as generate_images
    from infusion.pages.training_page import Preview, grid

    if step % every:
        return []
    images = generate_images(base, f"a photo of a <{adapter.concept_name}>", [adapter], _PREVIEW_SEEDS)
    save_png(grid(images, columns=len(images)), previews_dir / f"step-{step:06}.png")
    return [Preview(step, images)]


def _draw(
    console: "Console",
    base: "Base",
    prompts: Sequence[str],
    adapters: "Sequence[Adapter]",
    seeds: Sequence[int],
    settings: dict[str, Any],
    output_dir: Path,
) -> None:
    import inspect

    from infusion.base.latents import decode_latents
    from infusion.concepts.concept import slug
    from infusion.files import save_png
    from infusion.generation.pipeline import sample_prompts
    from infusion.pages.training_page import contact_sheet
    from infusion.terminal import progress_bar

    defaults = inspect.signature(sample_prompts).parameters.values()
    used = {p.name: p.default for p in defaults if p.kind is p.KEYWORD_ONLY} | settings
    used |= {"base": base.id, "concepts": [f"<{adapter.concept_name}>" for adapter in adapters]}
    wanted = [(row, prompt, seed) for row, prompt in enumerate(prompts) for seed in seeds]
    slugs = [slug(prompt)[:60].strip("-_") or "picture" for prompt in prompts]
    if len(set(slugs)) < len(slugs):
        slugs = [f"{row + 1}-{name}" for row, name in enumerate(slugs)]
    rows: list[list[Image.Image]] = [[] for _ in prompts[:_GRID_ROWS]]
    batches = sample_prompts(base, prompts, adapters, seeds, **settings)
    images = (image for latents in batches for image in decode_latents(base, latents))
    with progress_bar(console, "Drawing") as advance:
        for done, ((row, prompt, seed), image) in enumerate(zip(wanted, images, strict=True), start=1):
            text = {"prompt": prompt, "seed": str(seed), "settings": json.dumps(used, sort_keys=True)}
            save_png(image, output_dir / f"{slugs[row]}-{seed}.png", text)
            if row < _GRID_ROWS and len(rows[row]) < _GRID_COLUMNS:
                rows[row].append(image)
            advance(done, len(wanted), "")
    if len(wanted) > 1:
        grid = contact_sheet(rows, column_labels=[str(seed) for seed in seeds[:_GRID_COLUMNS]])
        save_png(grid, output_dir / "grid.png")
    console.print(f"{len(wanted)} picture{'s' if len(wanted) > 1 else ''} in {output_dir}.")


@contextmanager
def _interruptible() -> Iterator[Any]:
    """The first Ctrl-C (or SIGTERM) asks to stop after the step; a second one stops at once."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("\nStopping after this step; once more to stop at once.", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- what is said ---


def _described(concept: "Concept") -> str:
    number = len(concept.images)
    captions = sum(caption is not None for caption in concept.captions)
    told = f"{concept.placeholder}: {number} picture{'s' if number > 1 else ''} of one {concept.class_noun}"
    return told + (f", {captions} with captions." if captions else ".")


def _described_masks(masks: "Sequence[SubjectMask]") -> str:
    """Where the masks come from and how much of the pictures they cover."""
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
    return f"Masks: {counts}; they cover {mean:.0f}% of the pictures ({min(shares):.0f} to {max(shares):.0f}%)."


def _resolved(method: Any, settings: Any, **rest: str) -> str:
    """All that would be used, as lines of TOML."""
    values = {"method": method.name, **dataclasses.asdict(method), **dataclasses.asdict(settings), **rest}
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())
