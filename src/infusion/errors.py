"""What a person got wrong -> one sentence that says what to do."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(Exception):
    """A mistake a person can make and mend: what was given, what is allowed, what to do.

    The command line prints it as `error: ...`, without a traceback; whatever else is raised is our own fault.
    """


def nearest(name: str, options: Iterable[str]) -> str:
    """` Did you mean "x"?` for the option closest to `name`, or an empty string when none is close."""
    found = get_close_matches(name, list(options), n=1)
    return f' Did you mean "{found[0]}"?' if found else ""


def all_at_once(mistakes: list[str], where: str) -> UserError:
    """One error for several mistakes, so that nobody mends them one run at a time."""
    if len(mistakes) == 1:
        return UserError(mistakes[0])
    lines = [f"  - {mistake}".replace("\n", "\n    ") for mistake in mistakes]
    return UserError("\n".join([f"{len(mistakes)} mistakes in {where}:", *lines]))


@contextmanager
def noting(mistakes: list[str], prefix: str = "") -> Iterator[None]:
    """Puts a UserError among the mistakes, so that all of them are reported at once."""
    try:
        yield
    except UserError as error:
        mistakes.append(prefix + str(error))


def first_line(error: Exception) -> str:
    """What another library's error says, short enough for a sentence of ours; its type, where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]
