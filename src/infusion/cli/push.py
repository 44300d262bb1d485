"""Words on a command line -> a repository on the Hub: `infusion push`."""

from pathlib import Path
from typing import Annotated

import typer

from infusion.errors import UserError


def push(
    adapter: Annotated[Path, typer.Argument(help="An adapter file, of any method.", show_default=False)],
    repo_id: Annotated[
        str, typer.Argument(metavar="USER/REPO", help="A model repository; made if new.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="A new repository is for you only.")] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            "--pictures",
            metavar="PATH",
            help="An image for the card, or a folder of them; repeatable.",
            show_default=False,
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `infusion audit` measured of it: its JSON file."),
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write what would be uploaded into a folder here; nothing leaves it.")
    ] = False,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", metavar="DIR", help="Of --dry-run. [default: ADAPTER.hub]")
    ] = None,
) -> None:
    """Upload an adapter to the Hugging Face Hub, with a model card."""
    from infusion.sharing.repository import push_adapter, write_repository
    from infusion.terminal import plain_console

    console = plain_console()
    if not dry_run:
        if output_dir is not None:
            raise UserError("--output-dir is where --dry-run writes; give both, or neither.")
        address = push_adapter(adapter, repo_id, images or (), evaluation, private, message)
        console.print(f"{address}: {adapter}, with its model card. Try: infusion show {repo_id}")
        return
    folder = output_dir or Path(adapter.with_suffix(".hub").name)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; remove it, or give another folder: --output-dir.")
    for path in write_repository(adapter, repo_id, folder, images or (), evaluation):
        console.print(f"{path}: {path.stat().st_size:,} bytes")
    console.print(f"This would be {repo_id}; nothing was uploaded.")
