"""Words on a command line -> files: `infusion train`, `generate`, `show`, `demo`, and those of the other modules."""

import os
import sys
import warnings

import typer

from infusion.cli.audit import audit
from infusion.cli.benchmark import benchmark, report
from infusion.cli.demo import demo
from infusion.cli.generate import generate
from infusion.cli.method_settings import SettingsCommand
from infusion.cli.prepare import prepare
from infusion.cli.push import push
from infusion.cli.show import show
from infusion.cli.toybox import toybox
from infusion.cli.train import train
from infusion.errors import UserError

app = typer.Typer(
    help="Teach a diffusion model one thing from a few images, and see what that did to everything else it knows.",
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


app.command(cls=SettingsCommand)(train)
for _command in (generate, show, demo, prepare, audit, benchmark, report, push):
    app.command()(_command)
