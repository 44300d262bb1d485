"""Words on a command line -> methods compared: `infusion benchmark`, `report`."""

import os
import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infusion.benchmark import PRESETS_DIR
from infusion.cli.interrupt import INTERRUPTED, reported_when_stopped
from infusion.errors import UserError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from infusion.benchmark.specification import Specification
    from infusion.benchmark.units import Unit

_TOLD_FAILURES = 10


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
    from infusion.benchmark.run import run
    from infusion.benchmark.specification import load_specification
    from infusion.files import check_writable
    from infusion.pages.numbers import format_count, format_seconds
    from infusion.terminal import no_loading_bars, plain_console, progress_bar

    path, folder = _specification(spec)
    folder = output_dir or folder
    console = plain_console()
    no_loading_bars()
    os.environ.setdefault("TQDM_DISABLE", "1")  # those of the processes that will be started
    plan = load_specification(path)
    if dry_run:
        console.print(_dry(plan, folder))
        return
    check_writable(folder / "index.html")
    failed: list[str] = []
    words = ["infusion", "benchmark", spec, "-o", str(folder)]
    words += ["--processes", str(processes)] if processes > 1 else []
    results = run(path, folder, processes)
    try:
        with reported_when_stopped(), progress_bar(console, "Measuring") as advance, closing(results):
            for now in results:
                what = _named(now.unit)
                if now.failed:
                    failed.append(f"{what}: {now.failed}")
                advance(now.done, now.total, f"{what}, {format_seconds(now.seconds_left)} left")
    except KeyboardInterrupt:
        console.print(f"Interrupted. What was made is kept in {folder}; this goes on from there: {shlex.join(words)}")
        console.print(f"A page of what is there: {shlex.join(['infusion', 'report', str(folder)])}")
        raise typer.Exit(INTERRUPTED) from None
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


def _specification(spec: str) -> tuple[Path, Path]:
    """A TOML file or the name of a preset -> the file, and where its results go."""
    path = Path(spec)
    presets = {file.stem: file for file in sorted(PRESETS_DIR.glob("*.toml"))}
    if path.exists() or path.suffix == ".toml":
        return path, path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-results")
    if spec in presets:
        return presets[spec], Path(f"benchmark-{spec}")
    known = ", ".join(presets) or "none"
    raise UserError(f'There is no benchmark "{spec}".{nearest(spec, presets)} Give a TOML file, or a preset: {known}.')


# --- what is done ---


def _named(unit: "Unit") -> str:
    return f"{unit.row} {' and '.join(str(one.seed) for one in unit.individuals)}"


def _dry(spec: "Specification", folder: Path) -> str:
    """How much a benchmark is, and how much of it is there."""
    from infusion.base import load_base
    from infusion.benchmark.units import Ground, digest, is_done, units
    from infusion.pages.numbers import format_count

    ground = Ground.of(spec, load_base(spec.base))
    everything = units(spec)
    there = sum(is_done(folder, unit, digest(spec, unit, ground)) for unit in everything)
    num_rows = len({unit.row for unit in everything})
    pairs = sum(len(unit.individuals) > 1 for unit in everything)
    return (
        f"{spec.title}: {num_rows} rows × {format_count(len(spec.individuals), 'individual')} × "
        f"{format_count(len(spec.plan.prompts), 'prompt')} × "
        f"{format_count(spec.plan.drawing.num_seeds, 'seed')}; {pairs} of the results are of two concepts.\n"
        f"{format_count(len(everything), 'result')}: {there} are in {folder}, {len(everything) - there} are to be made."
    )


def _write_report(console: "Console", folder: Path, page: Path) -> None:
    from infusion.benchmark.page import MAIN, write_comparison
    from infusion.benchmark.results import load_results
    from infusion.benchmark.table import to_json, to_markdown
    from infusion.files import check_writable, whole_file

    results = load_results(folder)
    check_writable(page)
    for name, text in (("table.md", to_markdown(results, MAIN)), ("table.json", to_json(results))):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_comparison(folder, page)
    console.print(f"{page}: the page. {folder / 'table.md'}, {folder / 'table.json'}: the table.")
