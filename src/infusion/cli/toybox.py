"""Words on a command line -> images and figures of the embedded world: `infusion toybox ...`."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infusion.errors import UserError
from infusion.toybox.scene import CLASSES, FIRST_RESERVED_CONCEPT

if TYPE_CHECKING:
    from infusion.toybox.scene import Scene

toybox = typer.Typer(
    help="The embedded world: its images, its individuals, and how good its model is.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
SizeOption = Annotated[int, typer.Option("--size-px", min=16, max=1024, help="Side of the images in pixels.")]
OutputOption = Annotated[Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Where the files go.")]
_SHEET_COLUMNS = 10


@toybox.command()
def render(
    count: Annotated[int, typer.Argument(min=1, max=100_000, help="How many images.")] = 16,
    output_dir: OutputOption = Path("toybox"),
    first_seed: Annotated[int, typer.Option(min=0, help="Scenes first-seed, first-seed + 1 ... are drawn.")] = 0,
    size_px: SizeOption = 64,
) -> None:
    """Images of the world, with captions and everything that is true of them."""
    import time

    from infusion.files import check_writable
    from infusion.pages.numbers import format_seconds
    from infusion.terminal import plain_console, progress_bar
    from infusion.toybox.folders import write_scenes

    check_writable(output_dir / "metadata.jsonl")
    console = plain_console()
    started, before = time.monotonic(), None
    with progress_bar(console, "Drawing") as advance:
        for done in write_scenes(output_dir, first_seed, count, size_px):
            before = done if before is None else before
            left = (time.monotonic() - started) / max(1, done - before) * (count - done)
            advance(done, count, f"{format_seconds(left)} left" if before < done < count else "")
    console.print(f"{count} images in {output_dir}; facts of all of them in {output_dir / 'metadata.jsonl'}.")


@toybox.command()
def concept(
    seed: Annotated[int, typer.Argument(min=0, help="Which individual.", show_default=False)],
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", metavar="DIR", help="[default: toy-SEED]")
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, max=100, help="Training images.")] = 5,
    num_held_out: Annotated[int, typer.Option(min=0, max=1000, help="Images in other poses and places.")] = 20,
    class_noun: Annotated[str | None, typer.Option(help="[default: drawn from the seed]")] = None,
    size_px: SizeOption = 64,
) -> None:
    """One individual: a folder to train on, and held-out images in other poses and places."""
    from dataclasses import asdict

    from infusion.concepts.concept import slug
    from infusion.errors import nearest
    from infusion.files import check_writable, whole_file
    from infusion.toybox.concepts import training_background, write_concept
    from infusion.toybox.scene import BACKGROUNDS, individual

    if class_noun is not None and class_noun not in CLASSES:
        known = ", ".join(CLASSES)
        raise UserError(f'The toybox has no "{class_noun}". It has: {known}.{nearest(class_noun, CLASSES)}')
    folder = output_dir or Path(f"toy-{seed}")
    check_writable(folder / "about.json")
    who = individual(seed, class_noun)
    train, held_out = folder / "train", folder / "held-out"
    if any(path.exists() for path in (train, held_out)):
        raise UserError(f"{folder} holds an individual already. Choose another folder, or remove it first.")
    write_concept(seed, train, num_images, size_px=size_px, class_noun=class_noun)
    places = [name for name in BACKGROUNDS if name != training_background(seed)]
    if num_held_out:
        write_concept(seed, held_out, num_held_out, places, size_px, first=num_images, class_noun=class_noun)
    about = {"seed": seed, "training_background": training_background(seed), "individual": asdict(who)}
    with whole_file(folder / "about.json") as file:
        file.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(f"{train}: {num_images} images of one {who.class_noun}, with masks.")
    if num_held_out:
        print(f"{held_out}: {num_held_out} others, in other poses and places.")
    if seed >= FIRST_RESERVED_CONCEPT:
        print(f"Individuals from {FIRST_RESERVED_CONCEPT:,} on are for evaluation: tune nothing on this one.")
    words = ["infusion", "train", str(train), "--class-noun", who.class_noun, "--name", f"my-{slug(who.class_noun)}"]
    print(f"Try: {shlex.join(words)}")


def _scenes_where(wanted: "list[dict[str, str]]", first_seed: int) -> "list[Scene]":
    """For every wish the first scene of one toy that has these facts (class, background, style, time, accessory)."""
    import itertools

    from infusion.toybox.scene import sample_scene

    def fits(scene: "Scene", wish: dict[str, str]) -> bool:
        toy = scene.toys[0]
        told = {
            "class": toy.individual.class_noun,
            "background": scene.background,
            "style": scene.style,
            "time": "day" if scene.background == "night sky" else scene.time,
            "accessory": toy.accessory.kind if toy.accessory else "none",
        }
        return len(scene.toys) == 1 and toy.size_name == "medium" and all(told[key] == wish[key] for key in wish)

    found: list[Scene] = []
    for number, wish in enumerate(wanted):
        seeds = itertools.count(first_seed + 10_000 * number)
        found.append(next(scene for scene in map(sample_scene, seeds) if fits(scene, wish)))
    return found


def _sheet_rows(seed: int) -> "dict[str, list[Scene]]":
    """What the contact sheet shows, by the words beside each row."""
    from infusion.toybox.concepts import concept_scenes
    from infusion.toybox.scene import ACCESSORIES, BACKGROUNDS, STYLES, sample_scene

    plain = {"style": "photo", "time": "day"}
    columns = range(_SHEET_COLUMNS)
    nouns = [*CLASSES, *CLASSES][: 2 * _SHEET_COLUMNS]
    classes = _scenes_where([plain | {"class": noun} for noun in nouns], seed)
    drawn = [name for name in STYLES if name != "photo"]
    hours = [{"style": "photo", "time": ("sunset", "night")[column % 2]} for column in columns]
    return {
        "toys": classes[:_SHEET_COLUMNS],
        "and more": classes[_SHEET_COLUMNS:],
        "places": _scenes_where([plain | {"background": name} for name in BACKGROUNDS], seed + 1),
        "styles": _scenes_where([{"style": drawn[column % 3], "time": "day"} for column in columns], seed + 2),
        "hours": _scenes_where(hours, seed + 3),
        "wearing": _scenes_where([plain | {"accessory": ACCESSORIES[c % 4]} for c in columns], seed + 4),
        "two": [sample_scene(seed + column, num_toys=2) for column in columns],
        "three": [sample_scene(seed + column, num_toys=3) for column in columns],
        "one penguin": concept_scenes(seed, _SHEET_COLUMNS, BACKGROUNDS, class_noun="penguin"),
        "one turtle": concept_scenes(seed + 1, _SHEET_COLUMNS, BACKGROUNDS, class_noun="turtle"),
    }


@toybox.command()
def gates(
    base: Annotated[str, typer.Option(metavar="NAME", help='"toybox", or the folder of another one.')] = "toybox",
    output_dir: OutputOption = Path("gates"),
    judges: Annotated[str, typer.Option(metavar="SET", help="Which judges: a or b.")] = "a",
    num_single: Annotated[int, typer.Option(min=10, max=20_000, help="Captions of one toy.")] = 300,
    num_pairs: Annotated[int, typer.Option(min=10, max=10_000, help="Captions of two toys.")] = 200,
    num_judged: Annotated[int, typer.Option(min=128, max=40_000, help="Renders the judges are tested on.")] = 1000,
    write: Annotated[
        bool, typer.Option("--write", help="Write the figures and the model card beside the weights.")
    ] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda, ... [default: the fastest]")] = None,
) -> None:
    """Measure how good the embedded model and its judges are, gate by gate."""
    from infusion.base import load_base
    from infusion.files import check_writable
    from infusion.foundation.card import check_record, table, write_card, write_gates
    from infusion.foundation.gates import GUIDANCE_SCALE, NUM_INFERENCE_STEPS, measure_judges, measure_model
    from infusion.terminal import no_loading_bars, plain_console, progress_bar
    from infusion.toybox import FOUNDATION_DIR, TOYBOX
    from infusion.toybox.judges import JUDGE_SETS, load_judges

    if judges not in JUDGE_SETS:
        raise UserError(f'There are no judges "{judges}". There are: {", ".join(JUDGE_SETS)}.')
    model_dir = FOUNDATION_DIR if base == TOYBOX else Path(base)
    check_writable(output_dir / "gates.json")
    if write:
        check_record(model_dir)
    console = plain_console()
    no_loading_bars()
    console.print(f"Loading {base} ...")
    model = load_base(base, device)
    with progress_bar(console, "Measuring") as advance:
        measured = measure_model(
            model,
            load_judges(judges, model.device),
            output_dir,
            num_single,
            num_pairs,
            lambda what, done, total: advance(done, total, what),
        )
    for name in JUDGE_SETS:
        console.print(f"Judges {name} on held-out renders ...")
        measured += measure_judges(name, num_judged)
    console.print(table(measured))
    how = {"guidance_scale": GUIDANCE_SCALE, "num_inference_steps": NUM_INFERENCE_STEPS, "judges": judges}
    write_gates(output_dir / "gates.json", measured, how)
    console.print(f"{output_dir}: the images and {output_dir / 'gates.json'}.")
    if write:
        write_gates(model_dir / "gates.json", measured, how)
        write_card(model_dir)
        console.print(f"{model_dir / 'README.md'}: the model card.")


@toybox.command()
def sheet(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A PNG file.")] = Path("toybox.png"),
    seed: Annotated[int, typer.Option(min=0, max=FIRST_RESERVED_CONCEPT - 2, help="Another sheet.")] = 7,
    size_px: SizeOption = 96,
) -> None:
    """One image that shows what is in the world."""
    from infusion.files import check_writable, save_png
    from infusion.pages.images import contact_sheet
    from infusion.toybox.concepts import to_image
    from infusion.toybox.render import render as draw

    check_writable(output)
    rows = _sheet_rows(seed)
    pictures = [[to_image(image) for image in draw(scenes, size_px).images] for scenes in rows.values()]
    save_png(contact_sheet(pictures, list(rows)), output)
    print(f"{output}: {sum(map(len, pictures))} scenes.")
