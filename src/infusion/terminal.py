"""Progress -> a bar on a terminal, or a line now and then where there is none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


def plain_console(quiet: bool = False) -> Console:
    """Prints what it is given: no markup, no colours of numbers, no line breaks of its own. quiet: nothing at all."""
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=True, quiet=quiet)


def no_loading_bars() -> None:
    """Silences the bars that diffusers and transformers draw for every part they load; those of downloads stay."""
    import diffusers
    import transformers
    from huggingface_hub.utils import enable_progress_bars

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    enable_progress_bars()


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yields advance(done, total, text). Where there is no terminal: a line at every tenth of the way."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}", markup=False),
    )
    printed = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, told="")

        def advance(done: int, total: int, told: str) -> None:
            nonlocal printed
            bar.update(task, completed=done, total=total, told=told)
            tenth = done * 10 // total
            if not console.is_terminal and tenth > printed:
                console.print(f"{title} {done}/{total} {told}".rstrip())
            printed = tenth

        yield advance
