"""A path -> a file that is there whole, or not at all."""

import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from infusion.errors import UserError


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty temporary file beside `path`, with its suffix; it becomes `path` when the block ends.

    Missing parent folders are made. If the block fails in any way, Ctrl-C included, the temporary file is
    removed and what stood at `path` stays as it was. The block must only write: every OSError it raises
    becomes a UserError that says `path` cannot be written, and why.
    """
    target = _target(path)
    temporary: Path | None = None
    try:
        temporary = _new_file_beside(target)
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise UserError(_cannot_write(target, error)) from error
    except Exception as error:
        # Writers in Rust (safetensors) raise their own type; the system's number stands in the text.
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise UserError(_cannot_write(target, OSError(number, os.strerror(number)))) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def save_png(image: Image.Image, path: str | os.PathLike[str], text: Mapping[str, str] | None = None) -> None:
    """An image as a whole PNG file, with texts inside it that other tools can read."""
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Before long work: a UserError if `whole_file(path)` cannot make its file. Makes parent folders."""
    target = _target(path)
    try:
        _new_file_beside(target).unlink()
    except OSError as error:
        raise UserError(_cannot_write(target, error)) from error


def _target(path: str | os.PathLike[str]) -> Path:
    """Where the file will stand: a link is followed, so that it stays a link."""
    target = Path(os.path.realpath(path))
    if os.path.isdir(target) or str(path).endswith(("/", os.sep)):
        raise UserError(f"Cannot write {path}: it is a folder. Give the name of a file in it.")
    if os.path.exists(target) and not os.path.isfile(target):
        raise UserError(f"Cannot write {path}: it is a device or a pipe. Give the name of a file.")
    return target


def _new_file_beside(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    if len(os.fsencode(target.name)) > 255:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    temporary = target.with_name(f".infusion-{secrets.token_hex(6)}{target.suffix[:32]}")
    # Not tempfile: the file is to have the rights any new file gets, and tempfile's only its owner can read.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _flush(path: Path) -> None:
    """Onto the disk, so that a loss of power leaves the old file or the new one."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(target: Path, error: OSError) -> str:
    reasons = {
        errno.ENOSPC: "the disk is full. Free some space, or choose another disk",
        errno.EDQUOT: "your quota on that disk is used up. Free some space, or choose another disk",
        errno.EFBIG: "the file would be larger than is allowed there. Choose another place",
        errno.EACCES: f"no permission to write in {target.parent}. Choose another folder",
        errno.EPERM: f"no permission to write in {target.parent}. Choose another folder",
        errno.EROFS: "the disk can only be read. Choose another one",
        errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
        errno.ENOTDIR: "a part of that path is a file, not a folder. Choose another folder",
        errno.EEXIST: "a part of that path is a file, not a folder. Choose another folder",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return f"Cannot write {target}: {reason}."
