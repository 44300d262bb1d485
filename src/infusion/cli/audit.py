"""Words on a command line -> what a fine-tune learnt and broke: `infusion audit`."""

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infusion.cli.audit_given import (
    base_of,
    check_noun,
    check_outputs,
    class_noun_of,
    limits_of,
    outputs_of,
    real_images,
    targets_at,
)
from infusion.cli.interrupt import INTERRUPTED
from infusion.cli.options import (
    BASES,
    DEFAULT_CLIP,
    DEFAULT_ENCODER,
    PRECISIONS,
    TOYBOX,
    BaseConfigOption,
    check_choice,
    find_evaluators,
    load_base_on,
    watching_encoders,
)
from infusion.errors import all_at_once, noting

if TYPE_CHECKING:
    from rich.console import Console

    from infusion.auditing.limits import Limit
    from infusion.auditing.result import AuditResult, Curve
    from infusion.auditing.run import Audit
    from infusion.auditing.target import AuditTarget, Model
    from infusion.base import Base
    from infusion.concepts.concept import Concept
    from infusion.training.stopping import Check

_MOST_SEEDS = 1000
_LIMIT_EXCEEDED = 3


def audit(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="A LoRA, Textual Inversion, Custom Diffusion or adapter file, a fine-tuned pipeline or checkpoint; a "
            "folder of checkpoints of one run; several to compare.",
            show_default=False,
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"What it was trained on: {BASES} [default: an adapter's own]"),
    ] = None,
    base_config: BaseConfigOption = None,
    class_noun: Annotated[
        str | None, typer.Option(help="What kind of thing was taught: cat. [default: what the file says]")
    ] = None,
    trigger: Annotated[
        str | None, typer.Option(help='The words that name it in prompts: "sks cat". [default: what the file says]')
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            "--pictures",
            metavar="FOLDER",
            help="The images it was trained on; adds identity, copies and class leak.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One prompt a line, {} for the concept; or TOML with facts."),
    ] = None,
    scale: Annotated[float, typer.Option(min=0, max=10, help="How strongly it acts.")] = 1.0,
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts and seeds: a minute, wide intervals.")] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=_MOST_SEEDS, help="Images of every prompt. [default: 8, quick: 2]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page. [default: NAME-audit.html]")
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="All figures. [default: beside the page]")
    ] = None,
    work_dir: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where what was drawn is kept, for the next audit and after an interruption."),
    ] = Path("audit-work"),
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=NUMBER",
            help="Exit code 3 if class, world, confined, copied or any measure is above; repeatable.",
        ),
    ] = None,
    fail_below: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=NUMBER", help="Exit code 3 if learnt or any measure is below; repeatable."),
    ] = None,
    beside_infusion: Annotated[
        bool, typer.Option("--beside-infusion", help="Also train Infusion on the images, and compare.")
    ] = False,
    clip: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Who reads images and prompts. [default: {DEFAULT_CLIP}]")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Who recognises the subject. [default: {DEFAULT_ENCODER}]")
    ] = None,
    mixed_precision: Annotated[
        str, typer.Option(help="Precision of the models' weights: no, fp16 or bf16; two models are in memory.")
    ] = "no",
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Accept a base with the same layers that an adapter was not trained on.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps ... [default: the fastest there is]")
    ] = None,
) -> None:
    """Measure what anyone's fine-tune learnt, and what it broke."""
    from infusion import foreign
    from infusion.evaluation.plans import plan_for, read_prompts
    from infusion.terminal import plain_console

    page, json_path = outputs_of(paths, output, json_)
    mistakes: list[str] = []
    found: list[AuditTarget] = []
    name = noun = concept = wanted = None
    limits: list[Limit] = []
    for path in paths:
        with noting(mistakes):
            found += targets_at(path, class_noun, trigger, scale)
    is_run = any(map(foreign.is_run, paths))
    with noting(mistakes):
        noun = class_noun_of(found, is_run and len(paths) > 1)
    with noting(mistakes):
        name = base_of(base, found)
        check_noun(name, noun)
    with noting(mistakes):
        concept = real_images(images, found, noun, is_run, beside_infusion)
    with noting(mistakes):
        wanted = read_prompts(prompts, noun) if prompts is not None else None
    with noting(mistakes):
        limits = limits_of(fail_above, fail_below, images is not None)
    with noting(mistakes):
        check_choice("mixed_precision", mixed_precision, PRECISIONS)
    with noting(mistakes):
        check_outputs(page, json_path, work_dir)
    if mistakes:
        raise all_at_once(mistakes, "this command")
    assert name is not None and noun is not None

    console = plain_console()
    model = load_base_on(console, name, device, PRECISIONS[mixed_precision], base_config)
    plan = plan_for(noun, name == TOYBOX, quick, seeds, wanted)
    evaluators, names = find_evaluators(console, name, clip, encoder, model.device)

    from infusion.auditing.run import Audit
    from infusion.auditing.target import opened
    from infusion.base.latents import square

    shown = [square(image, model.size_px) for image in concept.images] if concept else []
    shared = Audit(model, noun, plan, evaluators, names, shown, work_dir)
    open_model = partial(opened, base=model, any_base=any_base, config=base_config)
    curve, judged = None, found
    try:
        if is_run:
            assert concept is not None
            curve, found = _curve(console, shared, found, concept, watching_encoders(name, clip, encoder), open_model)
            judged = found[:1]
        if beside_infusion:
            assert concept is not None
            found = [*found, _infusion(console, model, concept, work_dir)]
        audited = _audited(console, shared, found, open_model)
    except KeyboardInterrupt:
        console.print(f"Interrupted. What was whole by then is kept in {work_dir}; the same command goes on.")
        raise typer.Exit(INTERRUPTED) from None
    _write(console, audited, curve, page, json_path)
    _check_limits(audited[: len(judged)], limits)


def _check_limits(audited: "Sequence[AuditResult]", limits: "Sequence[Limit]") -> None:
    """Exit code 3, and a sentence for each limit that is exceeded."""
    found = [f"{one.name}: {sentence}" for one in audited for limit in limits if (sentence := limit.sentence(one))]
    if found:
        print("\n".join(found), file=sys.stderr)
        raise typer.Exit(_LIMIT_EXCEEDED)


def _curve(
    console: "Console",
    shared: "Audit",
    run: "Sequence[AuditTarget]",
    concept: "Concept",
    encoders: tuple[str, str],
    open_model: "Callable[[AuditTarget], Model]",
) -> "tuple[Curve, list[AuditTarget]]":
    """Every checkpoint looked at; then the one to keep and the last, to be measured in full."""
    from infusion.auditing.run import by_step, curve
    from infusion.metrics.encoders import load_clip, load_image_encoder
    from infusion.pages.numbers import format_seconds
    from infusion.terminal import progress_bar
    from infusion.training.stopping import SelfCheck, looked_with

    base = shared.reference.base
    rule = SelfCheck(base, concept, load_clip(encoders[0], base.device), load_image_encoder(encoders[1], base.device))
    steps = by_step(run)
    started, done, num_opened = time.monotonic(), 0, 0  # what was seen before is kept: such a checkpoint is not opened
    with progress_bar(console, "Looking at checkpoints") as advance:

        def open_counted(one: "AuditTarget") -> "Model":
            nonlocal num_opened
            num_opened += 1
            return open_model(one)

        def told(check: "Check") -> None:
            nonlocal done
            done += 1
            left = num_opened and (time.monotonic() - started) / num_opened * (len(steps) - done)
            seen = f"step {check.step}: learnt {check.learnt:.2f}, followed {check.followed:.2f}"
            advance(done, len(steps), f"{seen}, {format_seconds(left)} left" if left else seen)

        found = curve(shared, steps, open_counted, rule, looked_with(*encoders), told)
    kept, last = steps[found.kept.step], list(steps.values())[-1]
    console.print(f"The checkpoint to keep: step {found.kept.step}, {kept.found.path}.")
    return found, [kept] if kept is last else [kept, last]


def _infusion(console: "Console", base: "Base", concept: "Concept", work_dir: Path) -> "AuditTarget":
    """Infusion, trained on the same images with its defaults, or as it was trained before."""
    from infusion.auditing.target import given
    from infusion.methods.adapter_file import save_adapter
    from infusion.methods.infusion import Infusion
    from infusion.pages.numbers import format_seconds
    from infusion.terminal import progress_bar
    from infusion.training.loop import train

    seen = hashlib.sha256("".join([base.digest(), concept.class_noun]).encode())
    for image in concept.images:
        seen.update(image.tobytes())
    path = work_dir / f"infusion-{seen.hexdigest()[:16]}.safetensors"
    if not path.exists():
        adapter = Infusion().adapter(base, concept)
        with progress_bar(console, "Training Infusion") as advance:
            for now in train(base, adapter, concept, checkpoint_path=path.with_suffix(".checkpoint.safetensors")):
                advance(now.step, now.max_train_steps, f"{format_seconds(now.seconds_left)} left")
        save_adapter(adapter, path, base, {"num_images": len(concept.images)})
        path.with_suffix(".checkpoint.safetensors").unlink(missing_ok=True)
    return replace(given(path), name="infusion")


def _audited(
    console: "Console",
    shared: "Audit",
    found: "Sequence[AuditTarget]",
    open_model: "Callable[[AuditTarget], Model]",
) -> "list[AuditResult]":
    """Everything measured, one after another, with one bar."""
    from infusion.pages.numbers import format_count, format_seconds
    from infusion.terminal import progress_bar

    total = shared.num_to_draw(found)
    plan = shared.reference.plan
    told = f"{format_count(len(plan.prompts), 'prompt')} × {format_count(plan.drawing.num_seeds, 'image')}"
    console.print(f"{told}, {shared.reference.class_noun}: {format_count(total, 'image')} to draw.")
    started, done, audited = time.monotonic(), 0, []
    with progress_bar(console, "Drawing") as advance:

        def count(num: int) -> None:
            nonlocal done
            done += num
            left = (time.monotonic() - started) / done * (total - done)
            advance(done, total, f"{format_seconds(left)} left" if done < total else "")

        shared.reference.report = count
        for one in found:
            audited.append(shared.of(one, open_model(one)))
    return audited


def _write(
    console: "Console", audited: "Sequence[AuditResult]", curve: "Curve | None", page: Path, json_path: Path
) -> None:
    """A page for each, and one about all where there are several; all figures in one file."""
    from infusion.auditing.answers import answers
    from infusion.auditing.comparison_page import write_audits
    from infusion.auditing.page import write_audit
    from infusion.auditing.record import to_json
    from infusion.files import whole_file

    with whole_file(json_path) as temporary:
        temporary.write_text(to_json(audited, curve), encoding="utf-8")
    if len(audited) == 1 and curve is None:
        write_audit(audited[0], page)
    else:
        pages = [page.with_name(f"{page.stem}-{number}.html") for number in range(1, len(audited) + 1)]
        for one, own in zip(audited, pages, strict=True):
            write_audit(one, own)
        write_audits(audited, [own.name for own in pages], page, curve)
    for one in audited:
        if len(audited) > 1:
            console.print(f"\n{one.name}")
        for answer in answers(one):
            console.print(f"{answer.question} {answer.word}. {answer.sentence}")
    console.print(f"{page}: the page. {json_path}: all figures.")
