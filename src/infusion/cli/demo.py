"""A toy of the embedded world -> a page that shows how it was learnt: `infusion demo`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from infusion.cli.method_settings import method_and_training
from infusion.cli.train_one import train_one
from infusion.cli.train_options import TrainOptions
from infusion.errors import UserError
from infusion.toybox.scene import FIRST_RESERVED_CONCEPT

DEMO_LEARNING_RATE = "0.03"  # the embedded model wants more than the published 0.01


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
        raise UserError(f"The images cannot be written to {pictures}: {error.strerror}.") from error
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
    console.print(f"Five images of a {class_noun} that the embedded model has never seen are in {pictures}. Now:")
    console.print(f"  {shlex.join(['infusion', *words])}")
    options = TrainOptions(pictures, class_noun, name, output=adapter, page=page)
    train_one(options, lambda: method_and_training({"learning_rate": DEMO_LEARNING_RATE}, [], None))
    console.print(f"The page: {page.resolve().as_uri()}")
