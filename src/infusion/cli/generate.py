"""Prompts, adapter files and seeds -> images: `infusion generate`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infusion.cli.options import (
    BASES,
    BaseConfigOption,
    DeviceOption,
    load_base_on,
)
from infusion.errors import UserError, all_at_once, noting
from infusion.generation.composers import COMPOSERS

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from infusion.base import Base
    from infusion.methods.adapter import Adapter

MAX_SEEDS = 10_000
_GRID_ROWS, _GRID_COLUMNS = 16, 8


def generate(
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT...", help='Such as "a <my-cat> on the beach".', show_default=False),
    ],
    concept: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An adapter file, or user/repo on the Hub; repeatable.", show_default=False),
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Where the images go.")] = Path(
        "out"
    ),
    seed: Annotated[str, typer.Option(help="One image of each prompt for every seed: 42, 1,5,9 or 0..7.")] = "0",
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"{BASES} [default: the first concept's]"),
    ] = None,
    base_config: BaseConfigOption = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the images are to keep away from.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Steps of the sampler.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="Classifier-free guidance; 1 is none.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images drawn at a time.")] = None,
    lock_until: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the steps that follow the base's attention; less is faster."),
    ] = None,
    composer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"How several concepts act in one image: {', '.join(COMPOSERS)}. [default: together]"
        ),
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
    from infusion.generation.pipeline import composer_of
    from infusion.methods.adapter_file import read_adapter_file, restored

    read = []
    made_on: list[str] = []
    with noting(mistakes):
        composer_of(composer, 1.0 if lock_until is None else lock_until)
    class_nouns: dict[str, str] = {}
    for path in files:
        with noting(mistakes):
            about, tensors = read_adapter_file(path)
            if about["concept_name"] in class_nouns:
                raise UserError(f"{path} is the second concept called <{about['concept_name']}>; give one of them.")
            class_nouns[about["concept_name"]] = about["class_noun"]
            made_on.append(about["base"]["id"])
            read.append((about, tensors, path))
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
    adapters = [restored(about, tensors, model, any_base, path) for about, tensors, path in read]
    given = {
        "negative_prompt": negative_prompt,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "batch_size": batch_size,
        "lock_until": lock_until,
        "composer": composer,
    }
    settings = {key: value for key, value in given.items() if value is not None}
    _draw(console, model, prompts, adapters, seeds, settings, output_dir)


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
    from infusion.pages.images import contact_sheet
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
    console.print(f"{len(wanted)} image{'s' if len(wanted) > 1 else ''} in {output_dir}.")
