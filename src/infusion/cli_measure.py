"""Words on a command line -> what was learnt and what was broken: `infusion evaluate`, `benchmark`, `report`."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infusion.errors import UserError, all_at_once, nearest, noting

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from infusion.base import Base
    from infusion.evaluation import Plan, Witnesses

_TOYBOX = "toybox"
_TOYBOX_WITNESS, _TOYBOX_JUDGES = "toybox-b", "b"  # of the embedded world; no method is trained with them
DEFAULT_CLIP, DEFAULT_ENCODER = "openai/clip-vit-base-patch32", "facebook/dinov2-base"  # for other bases
_INTERRUPTED = 130
_MOST_SEEDS = 1000
_TOLD_FAILURES = 10

BASES = '"toybox", a folder or hub id, or a checkpoint in one .safetensors file.'
BaseConfigOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="For a checkpoint in one file: a folder or hub id in the diffusers layout with its configuration. "
        "[default: diffusers' choice, on the Hub]",
    ),
]


def evaluate(
    adapter: Annotated[Path, typer.Argument(help="An adapter file, or user/repo on the Hub.", show_default=False)],
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The pictures it was trained on; adds identity, copies and class leak."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"{BASES} [default: the adapter's own]"),
    ] = None,
    base_config: BaseConfigOption = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One prompt a line, {} for the concept; or TOML with facts."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts and seeds: a minute, wide intervals.")] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=_MOST_SEEDS, help="Pictures of every prompt. [default: 8, quick: 2]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page. [default: ADAPTER-evaluation.html]")
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="All figures. [default: beside the page]")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Who reads pictures and prompts. [default: {DEFAULT_CLIP}]")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Who recognises the subject. [default: {DEFAULT_ENCODER}]")
    ] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Accept a base with the same layers that it was not trained on.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps ... [default: the fastest there is]")
    ] = None,
) -> None:
    """Measure what an adapter learnt and what it broke."""
    from infusion.adapter_file import load_adapter, read_adapter_file
    from infusion.evaluation_defaults import num_pictures, plan_for, read_prompts
    from infusion.files import check_writable
    from infusion.hub import adapter_path
    from infusion.report import format_count
    from infusion.terminal import plain_console

    output = output or _page_beside(adapter)
    json_path = json_ or output.with_suffix(".json")
    mistakes: list[str] = []
    about: dict[str, Any] = {}
    real: list[Image.Image] = []
    wanted = None
    with noting(mistakes):
        about, tensors = read_adapter_file(adapter)
        file = adapter_path(adapter)
    noun = about.get("class_noun")
    if noun is not None:
        with noting(mistakes):
            _check_noun(base or about["base"]["id"], noun)
    with noting(mistakes):
        real = _read_pictures(pictures, about) if pictures is not None else []
    with noting(mistakes):
        wanted = read_prompts(prompts, noun) if prompts is not None else None
    with noting(mistakes):
        check_writable(output)
        check_writable(json_path)
        if output.resolve() == json_path.resolve():
            raise UserError(f"The page and its figures cannot both be {output}; give the page another name.")
    if mistakes:
        raise all_at_once(mistakes, "this command")

    console = plain_console()
    name = base or about["base"]["id"]
    model = load_base_on(console, name, device, config=base_config)
    plan = plan_for(noun or "", name == _TOYBOX, quick, seeds, wanted)
    learnt = load_adapter(file, model, any_base)
    witnesses, names = _witnesses(console, name, clip, encoder)
    num = num_pictures(plan)
    num_seeds = plan.drawing.num_seeds
    told = f"{len(plan.prompts)} prompts × {format_count(num_seeds, 'seed')}; {num} pictures are drawn in all"
    console.print(f"<{about['concept_name']}>, a {noun} by {about['method']}: {told}.")

    from infusion.evaluation_page import Evaluated, to_json, write_evaluation
    from infusion.files import whole_file
    from infusion.latents import square

    shown = [square(image, model.size_px) for image in real]
    started = time.monotonic()
    own, untouched, nulls = _measure(console, model, learnt, plan, witnesses, shown, num)
    found = Evaluated(
        about=about,
        file_name=file.name,
        file_bytes=file.stat().st_size,
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        base=name,
        plan=plan,
        own=own,
        untouched=untouched,
        nulls=nulls,
        training=shown,
        witnesses=names,
        seconds=time.monotonic() - started,
    )
    with whole_file(json_path) as temporary:
        temporary.write_text(to_json(found), encoding="utf-8")
    write_evaluation(found, output)
    _tell(console, found)
    console.print(f"{output}: the page. {json_path}: all figures.")


def benchmark(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help='A TOML file, or "quick", which comes along.', show_default=False)
    ],
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", metavar="DIR", help="[default: SPEC without .toml]")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=1024, help="Results made at a time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and what is there.")] = False,
) -> None:
    """Compare methods on individuals of the embedded world; what was made before is kept."""
    from infusion import benchmark as benchmarks
    from infusion.files import check_writable
    from infusion.report import format_count, format_seconds
    from infusion.terminal import no_loading_bars, plain_console, progress_bar

    path, folder = _specification(spec)
    folder = output_dir or folder
    console = plain_console()
    no_loading_bars()
    os.environ.setdefault("TQDM_DISABLE", "1")  # those of the processes that will be started
    plan = benchmarks.load_specification(path)
    if dry_run:
        console.print(_dry(benchmarks, plan, folder))
        return
    check_writable(folder / "index.html")
    failed: list[str] = []
    words = ["infusion", "benchmark", spec, "-o", str(folder)]
    words += ["--processes", str(processes)] if processes > 1 else []
    results = benchmarks.run(path, folder, processes)
    try:
        with _told_when_stopped(), progress_bar(console, "Measuring") as advance, closing(results):
            for now in results:
                what = _named(now.unit)
                if now.failed:
                    failed.append(f"{what}: {now.failed}")
                advance(now.done, now.total, f"{what}, {format_seconds(now.seconds_left)} left")
    except KeyboardInterrupt:
        console.print(f"Interrupted. What was made is kept in {folder}; this goes on from there: {shlex.join(words)}")
        console.print(f"A page of what is there: {shlex.join(['infusion', 'report', str(folder)])}")
        raise typer.Exit(_INTERRUPTED) from None
    if failed:
        console.print(f"{format_count(len(failed), 'result')} could not be measured; their cells say so:")
        console.print("\n".join(f"  - {line}" for line in failed[:_TOLD_FAILURES]))
        if len(failed) > _TOLD_FAILURES:
            console.print(f"  and {len(failed) - _TOLD_FAILURES} more.")
    _write_report(console, folder, folder / "index.html")


def report(
    results_dir: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a benchmark.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page. [default: DIR/index.html]")
    ] = None,
) -> None:
    """Write a benchmark's page and tables anew, from what is on disk."""
    from infusion.terminal import plain_console

    _write_report(plain_console(), results_dir, output or results_dir / "index.html")


# --- what is given ---


def _page_beside(adapter: Path) -> Path:
    """Beside the file; of an adapter on the Hub, here."""
    if os.path.exists(adapter):
        return adapter.with_name(f"{adapter.stem}-evaluation.html")
    name = "-".join(adapter.parts).replace("@", "-").removesuffix(".safetensors")
    return Path(f"{name}-evaluation.html")


def _check_noun(base: str, class_noun: str) -> None:
    """The toybox's judges know its own classes only."""
    from infusion.toybox.scene import CLASSES

    if base == _TOYBOX and class_noun not in CLASSES:
        raise UserError(
            f'The class noun of this adapter is "{class_noun}", which the judges of the toybox cannot see.'
            f"{nearest(class_noun, CLASSES)} They know: {', '.join(CLASSES)}. Train it with one of these."
        )


def _read_pictures(folder: Path, about: dict[str, Any]) -> "list[Image.Image]":
    """The real pictures; a caption that tells of another thing is a folder given by mistake."""
    from infusion.concept import load_concept
    from infusion.prompts import name_concept

    name, noun = about.get("concept_name", "concept"), about.get("class_noun", "thing")
    concept = load_concept(folder, noun, name)
    for warning in concept.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if len(concept.images) < 2:
        raise UserError(f"{folder} has one picture; a scale of likeness needs two or more of the same subject.")
    mistakes: list[str] = []
    for source, caption in zip(concept.sources, concept.captions, strict=True):
        with noting(mistakes, f"{source}: "):
            name_concept(caption or concept.placeholder, concept.placeholder, noun)
    if mistakes and about:
        raise UserError(f'The pictures in {folder} are not of this adapter\'s class "{noun}". {mistakes[0]}')
    return list(concept.images)


def _specification(spec: str) -> tuple[Path, Path]:
    """A TOML file or the name of a preset -> the file, and where its results go."""
    path = Path(spec)
    presets = {file.stem: file for file in sorted((Path(__file__).parent / "presets").glob("*.toml"))}
    if path.exists() or path.suffix == ".toml":
        return path, path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-results")
    if spec in presets:
        return presets[spec], Path(f"benchmark-{spec}")
    known = ", ".join(presets) or "none"
    raise UserError(f'There is no benchmark "{spec}".{nearest(spec, presets)} Give a TOML file, or a preset: {known}.')


# --- what is done ---


def load_base_on(
    console: "Console", name: str, device: str | None, dtype: str = "float32", config: str | None = None
) -> "Base":
    import torch

    from infusion.base import load_base
    from infusion.terminal import no_loading_bars

    no_loading_bars()
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UserError(f'There is no device "{device}" here. Leave --device out, or give cpu.') from error
    console.print(f"Loading {name} ...")
    return load_base(name, device, getattr(torch, dtype), config)


def _witnesses(
    console: "Console", base: str, clip: str | None, encoder: str | None
) -> "tuple[Witnesses, dict[str, str | None]]":
    """Who looks at the pictures, and their names."""
    from infusion.encoders import load_clip, load_image_encoder
    from infusion.evaluation import Witnesses
    from infusion.toybox.judges import load_judges

    toybox = base == _TOYBOX
    clip = clip or (_TOYBOX_WITNESS if toybox else DEFAULT_CLIP)
    encoder = encoder or (_TOYBOX_WITNESS if toybox else DEFAULT_ENCODER)
    console.print(f"Loading {' and '.join(dict.fromkeys([clip, encoder]))} ...")
    judges = load_judges(_TOYBOX_JUDGES) if toybox else None
    names = {"clip": clip, "encoder": encoder, "judges": _TOYBOX_JUDGES if toybox else None}
    return Witnesses(load_clip(clip), load_image_encoder(encoder), judges), names


def _measure(
    console: "Console",
    base: "Base",
    adapter: Any,
    plan: "Plan",
    witnesses: "Witnesses",
    pictures: "list[Image.Image]",
    num_pictures: int,
) -> tuple[Any, Any, dict[str, float]]:
    """The adapter's measures, the base's own, and what chance makes of distances; with a progress bar."""
    from infusion.evaluation import ConceptPictures, Reference, to_tensor
    from infusion.evaluation import evaluate as measure
    from infusion.report import format_seconds
    from infusion.terminal import progress_bar

    real = ConceptPictures(to_tensor(pictures)) if pictures else None
    started, done = time.monotonic(), 0
    with progress_bar(console, "Drawing") as advance:

        def count(num: int) -> None:
            nonlocal done
            done += num
            left = (time.monotonic() - started) / done * (num_pictures - done)
            advance(done, num_pictures, f"{format_seconds(left)} left" if done < num_pictures else "")

        reference = Reference(base, adapter.class_noun, plan, witnesses, count)
        own = measure(reference, adapter, real)
        untouched = measure(reference, None, real)
        return own, untouched, reference.nulls


@contextmanager
def _told_when_stopped() -> Iterator[None]:
    """At the first Ctrl-C: says that what is being made is still made whole. A second one stops at once."""

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        print("\nStopping when what is being made is whole; once more to stop at once.", file=sys.stderr)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _named(unit: Any) -> str:
    return f"{unit.row} {' and '.join(str(one.seed) for one in unit.individuals)}"


def _dry(benchmarks: Any, spec: Any, folder: Path) -> str:
    """How much a benchmark is, and how much of it is there."""
    from infusion.base import load_base
    from infusion.report import format_count

    ground = benchmarks.Ground.of(spec, load_base(spec.base))
    everything = benchmarks.units(spec)
    there = sum(benchmarks.is_done(folder, unit, benchmarks.digest(spec, unit, ground)) for unit in everything)
    num_rows = len({unit.row for unit in everything})
    pairs = sum(len(unit.individuals) > 1 for unit in everything)
    return (
        f"{spec.title}: {num_rows} rows × {format_count(len(spec.individuals), 'individual')} × "
        f"{format_count(len(spec.plan.prompts), 'prompt')} × "
        f"{format_count(spec.plan.drawing.num_seeds, 'seed')}; {pairs} of the results are of two concepts.\n"
        f"{format_count(len(everything), 'result')}: {there} are in {folder}, {len(everything) - there} are to be made."
    )


def _write_report(console: "Console", folder: Path, page: Path) -> None:
    from infusion.comparison import load_results, to_json, to_markdown
    from infusion.comparison_page import MAIN, write_comparison
    from infusion.files import check_writable, whole_file

    results = load_results(folder)
    check_writable(page)
    for name, text in (("table.md", to_markdown(results, MAIN)), ("table.json", to_json(results))):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_comparison(folder, page)
    console.print(f"{page}: the page. {folder / 'table.md'}, {folder / 'table.json'}: the table.")


# --- what is said ---


def _tell(console: "Console", found: Any) -> None:
    from infusion.evaluation_page import answers

    for answer in answers(found):
        console.print(f"{answer.question} {answer.word}. {answer.sentence}")
