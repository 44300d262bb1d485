"""metadata.jsonl or metadata.csv, as Hugging Face's imagefolder has it -> what it says of each image."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from infusion.errors import UserError

FILE_NAMES = ("metadata.jsonl", "metadata.csv")
_CAPTION_COLUMNS = ("text", "caption", "prompt")
_MASK_COLUMNS = ("mask_file_name", "mask")


@dataclass(frozen=True)
class Row:
    """What is said of one image. Paths are within the folder, whether or not there is such a file."""

    path: Path
    caption: str = ""
    mask_path: Path | None = None


def read_metadata(folder: Path) -> list[Row]:
    """The rows of the folder's metadata file; none where there is no such file.

    Raises:
        UserError: the file cannot be read, there are two, or a path in it leads out of the folder.
    """
    files = [folder / name for name in FILE_NAMES if (folder / name).is_file()]
    if not files:
        return []
    if len(files) > 1:
        raise UserError(f"{folder} has both {' and '.join(FILE_NAMES)}. Keep the one that is right.")
    path = files[0]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable UTF-8 text. Mend or remove it.") from error
    read = _json_lines if path.suffix == ".jsonl" else _table
    return [_row(entry, f"Line {number} of {path}") for number, entry in read(text, path)]


def path_within(text: object, where: str) -> Path:
    """A relative path that stays in its folder, whichever way its slashes lean; `where` begins the sentence."""
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{where} has no file name ("file_name"). Mend or remove it.')
    # Windows' reading of a path knows both kinds of slashes, and drives.
    parts = PureWindowsPath(text.strip())
    if parts.anchor or ".." in parts.parts:
        raise UserError(f'{where} names "{text}", outside its folder. Only files in the folder can be named.')
    return Path(*parts.parts)


def _row(entry: Mapping[str, Any], where: str) -> Row:
    path = path_within(entry.get("file_name"), where)
    caption = next((str(entry[name]) for name in _CAPTION_COLUMNS if entry.get(name)), "")
    mask = next((entry[name] for name in _MASK_COLUMNS if isinstance(entry.get(name), str) and entry[name]), None)
    return Row(path, caption, path_within(mask, where) if mask else None)


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise UserError(
                f'Line {number} of {path} is not a JSON object with a "file_name" and a "text". Mend or remove it.'
            )
        yield number, entry


def _table(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    first = text.partition("\n")[0]
    delimiter = ";" if ";" in first and "," not in first else ","  # spreadsheets write either
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        if "file_name" not in (table.fieldnames or ()):
            raise UserError(
                f'{path} has no column "file_name" in its first line, "{first[:80]}". Name the columns there.'
            )
        for entry in table:
            if None in entry:
                raise UserError(
                    f"Line {table.line_num} of {path} has more cells than columns. "
                    "Put captions that hold a comma in quotes."
                )
            yield table.line_num, entry
    except csv.Error as error:
        raise UserError(f"Line {table.line_num} of {path} is not CSV ({error}). Mend or remove it.") from error
