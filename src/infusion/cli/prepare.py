"""Words on a command line -> what a folder of images is understood to be: `infusion prepare`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infusion.cli.options import BASES, BaseConfigOption, load_base_on
from infusion.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from infusion.base import Base
    from infusion.concepts.concept import Concept

CropOption = Annotated[
    str,
    typer.Option(
        help='What is seen of an image: "square", its middle square, or "buckets", its middle in the nearest of some '
        "shapes as large as the square."
    ),
]
SegmenterOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help='Who finds the subject in images without a mask: "attention", the base itself; a CLIPSeg, by folder or '
        'hub id; or "auto": CIDAS/clipseg-rd64-refined if it is in the local cache and the base is not the toybox, '
        "else the base.",
    ),
]


def find_masks(concept: "Concept", base: "Base", segmenter: str) -> "Concept":
    """The concept with CLIPSeg's masks where it had none; as it is where the base's attention is to find them."""
    if segmenter == "attention" or None not in concept.masks:
        return concept

    from infusion.concepts.segmenter import load_segmenter, segmented

    if segmenter != "auto":
        found = segmented(concept, load_segmenter(segmenter, base.device))
    elif base.id == "toybox":  # whose images no CLIPSeg has seen
        return concept
    else:
        try:
            found = segmented(concept, load_segmenter(device=base.device))
        except UserError:
            return concept
    for warning in found.warnings[len(concept.warnings) :]:
        print(f"warning: {warning}", file=sys.stderr)
    return found


def prepare(
    folder: Annotated[Path, typer.Argument(help="The folder of images, or a JSON list of concepts.")],
    class_noun: Annotated[
        str | None, typer.Option(help="What kind of thing it is: cat. [default: what the folder says, if it does]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What prompts call it. [default: the folder's name]")] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", metavar="DIR", help="Where a tidy folder is written. [default: nowhere]"),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The sheet, a PNG file. [default: NAME-sheet.png]")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Masks with the names of the images; white is learnt.")
    ] = None,
    segmenter: SegmenterOption = "auto",
    crop: CropOption = "square",
    base: Annotated[str, typer.Option(metavar="NAME", help=BASES)] = "toybox",
    base_config: BaseConfigOption = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps ... [default: the fastest there is]")
    ] = None,
) -> None:
    """Show what training would see of a folder, and write it anew in one tidy layout."""
    from infusion.concepts.concept import load_concept
    from infusion.concepts.list import load_concepts
    from infusion.files import check_writable
    from infusion.terminal import plain_console

    listed = folder.suffix.lower() == ".json" and folder.is_file()
    if listed and (class_noun or name or masks or sheet):
        raise UserError(f"{folder} lists concepts, with their own names and images: leave these options out.")
    concepts = load_concepts(folder) if listed else [load_concept(folder, class_noun, name, masks)]
    sheets = [sheet or Path(f"{concept.name}-sheet.png") for concept in concepts]
    for path in sheets:
        check_writable(path)
    console = plain_console()
    model = load_base_on(console, base, device, config=base_config)
    for concept, path in zip(concepts, sheets, strict=True):
        for warning in concept.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        concept = find_masks(concept, model, segmenter)
        folder_of_it = output_dir / concept.name if output_dir and listed else output_dir
        _prepare(console, model, concept, crop, path, folder_of_it)


def _prepare(
    console: "Console", base: "Base", concept: "Concept", crop: str, path: Path, output_dir: Path | None
) -> None:
    from infusion.concepts.sheet import seen, sheet, write_folder
    from infusion.files import save_png

    images = seen(base, concept, crop)
    console.print(f"{concept.placeholder}, a {concept.class_noun}:")
    longest = max(len(image.source) for image in images)
    for image in images:
        width, height = image.image.size
        learnt = f"{image.mask.coverage:4.0%} learnt ({image.mask.source})"
        told = [f"{width} x {height} px", learnt, image.caption or "no caption", *image.notes]
        console.print(f"  {image.source:{longest}}  {'; '.join(told)}")
    if output_dir is not None:
        write_folder(concept, output_dir)
        console.print(f"{output_dir}: the same in one layout. Try: infusion train {shlex.quote(str(output_dir))}")
    save_png(sheet(concept, images), path)
    console.print(f"{path}: every image as training sees it; what is tinted is not learnt.")
