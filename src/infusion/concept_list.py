"""Custom Diffusion's list of concepts (JSON) -> the concepts it lists."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infusion.concept import Concept, load_concept
from infusion.errors import UserError, all_at_once, noting

_EXAMPLE = '[{"instance_prompt": "photo of a <new1> cat", "class_prompt": "cat", "instance_data_dir": "my_cat"}]'
_TOKEN = re.compile(r"<([^<>\s]+)>")
_BEFORE_THE_NOUN = re.compile(r"((a|an|the)\s+)?((photo|picture|image)\s+of\s+)?((a|an|the)\s+)?", re.IGNORECASE)


def load_concepts(path: str | os.PathLike[str]) -> list[Concept]:
    """Read every concept of a list in the format of diffusers' `--concepts_list`.

    A concept's pictures are in its `instance_data_dir`, taken from where the list lies. Its class noun is its
    `class_prompt`, its name the `<token>` of its `instance_prompt`; where these say nothing, the folder has to, as for
    `load_concept`. Pictures of the class are drawn by the base here, so that `class_data_dir` is not read.

    Raises:
        UserError: the file is no such list, or a concept of it cannot be read; every mistake at once.
    """
    path = Path(path)
    concepts: list[Concept] = []
    mistakes: list[str] = []
    for number, entry in enumerate(_entries(path), start=1):
        with noting(mistakes, f"Concept {number}: "):
            concepts.append(_concept(entry, path.parent))
            name = concepts[-1].name
            if any(concept.name == name for concept in concepts[:-1]):
                raise UserError(f'It is the second called "{name}". Give each its own <token> in "instance_prompt".')
    if mistakes:
        raise all_at_once(mistakes, str(path))
    return concepts


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


def _concept(entry: Any, parent: Path) -> Concept:
    if not isinstance(entry, dict):
        raise UserError(f"It is not a JSON object, such as {_EXAMPLE[1:-1]}.")
    folder = _text(entry, "instance_data_dir")
    if not folder:
        raise UserError('It has no "instance_data_dir". Give the folder that holds its pictures.')
    noun = _BEFORE_THE_NOUN.sub("", _text(entry, "class_prompt").strip(), count=1)
    token = _TOKEN.search(_text(entry, "instance_prompt"))
    return load_concept(parent / folder, noun or None, token[1] if token else None)


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key) or ""
    if not isinstance(value, str):
        raise UserError(f'Its "{key}" is {json.dumps(value)[:80]}, not a text.')
    return value
