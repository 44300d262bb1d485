"""Custom Diffusion's list of concepts (JSON), or a folder of concept folders -> the concepts."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from infusion.concepts.concept import Concept, load_concept
from infusion.concepts.folder import concept_folders
from infusion.errors import UserError, all_at_once, noting

_EXAMPLE = '[{"instance_prompt": "photo of a <new1> cat", "class_prompt": "cat", "instance_data_dir": "my_cat"}]'
_OTHER_NAME = 'Give each its own: a <token> in "instance_prompt", or a "name" in the folder\'s concept.json.'
_TOKEN = re.compile(r"<([^<>\s]+)>")
_BEFORE_THE_NOUN = re.compile(r"((a|an|the)\s+)?((photo|picture|image)\s+of\s+)?((a|an|the)\s+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Listed:
    """One of several concepts: where its images are and, once they were read, what it is called."""

    folder: Path
    class_noun: str | None
    name: str | None

    def load(self) -> Concept:
        return load_concept(self.folder, self.class_noun, self.name)


def load_concepts(path: str | os.PathLike[str]) -> list[Concept]:
    """Read every concept of a list in the format of diffusers' `--concepts_list`, or of a folder of concept folders.

    A concept's images are in its `instance_data_dir`, taken from where the list lies. Its class noun is its
    `class_prompt`, its name the `<token>` of its `instance_prompt`; where these say nothing, the folder has to, as for
    `load_concept`. Images of the class are drawn by the base here, so that `class_data_dir` is not read.

    Raises:
        UserError: the file is no such list, or a concept of it cannot be read; every mistake at once.
    """
    return [concept for _, concept in _all_read(Path(path))]


def listed_concepts(
    path: Path, class_noun: str | None = None, check: Callable[[Concept], None] | None = None
) -> list[Listed]:
    """Every concept of a list or folder, read once to be sure that it can be, and let go of.

    Args:
        class_noun: that of all, whatever list and folders say.
        check: raises a UserError where a concept that can be read is still wrong.

    Raises:
        UserError: as `load_concepts`, and what `check` finds.
    """
    read = _all_read(path, class_noun, check or (lambda concept: None))
    return [Listed(listed.folder, concept.class_noun, concept.name) for listed, concept in read]


def holds_concepts(path: Path) -> bool:
    """Whether it is a list, or a folder of at least two concept folders."""
    is_list = path.suffix.lower() == ".json" and os.path.isfile(path)
    return is_list or bool(concept_folders(path))


def _all_read(
    path: Path, class_noun: str | None = None, check: Callable[[Concept], None] = lambda concept: None
) -> Iterator[tuple[Listed, Concept]]:
    """Each concept as it is read; after the last, one UserError for all that could not be."""
    mistakes: list[str] = []
    names: set[str] = set()
    for where, find in _places(path):
        with noting(mistakes, f"{where}: "):
            listed = find()
            listed = replace(listed, class_noun=class_noun or listed.class_noun)
            concept = listed.load()
            check(concept)
            if concept.name in names:
                raise UserError(f'It is the second called "{concept.name}". {_OTHER_NAME}')
            names.add(concept.name)
            yield listed, concept
    if mistakes:
        raise all_at_once(mistakes, str(path))


def _places(path: Path) -> list[tuple[str, Callable[[], Listed]]]:
    """What messages call each concept, and what finds it."""
    if folders := concept_folders(path):
        return [(str(folder.relative_to(path)), partial(Listed, folder, None, None)) for folder in folders]
    entries = enumerate(_entries(path), start=1)
    return [(f"Concept {number}", partial(_listed, entry, path.parent)) for number, entry in entries]


def _entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read the list of concepts {path}: {error.strerror}.") from error
    except (ValueError, RecursionError):  # also what is not UTF-8
        entries = None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} is not a JSON list of concepts, such as {_EXAMPLE}.")
    return entries


def _listed(entry: Any, parent: Path) -> Listed:
    if not isinstance(entry, dict):
        raise UserError(f"It is not a JSON object, such as {_EXAMPLE[1:-1]}.")
    folder = _text(entry, "instance_data_dir")
    if not folder:
        raise UserError('It has no "instance_data_dir". Give the folder that holds its images.')
    noun = _BEFORE_THE_NOUN.sub("", _text(entry, "class_prompt").strip(), count=1)
    token = _TOKEN.search(_text(entry, "instance_prompt"))
    return Listed(parent / folder, noun or None, token[1] if token else None)


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key) or ""
    if not isinstance(value, str):
        raise UserError(f'Its "{key}" is {json.dumps(value)[:80]}, not a text.')
    return value
