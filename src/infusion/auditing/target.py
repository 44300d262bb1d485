"""A file or folder of any tool + its base -> a customized model, and how its concept is named."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infusion.base import Base
from infusion.base.customization import Named, Strengthened, Words
from infusion.errors import UserError
from infusion.foreign import ALL_OR_NOTHING, Found, customized, inspect
from infusion.methods.adapter_file import load_adapter, read_adapter_file


@dataclass(frozen=True)
class AuditTarget:
    """A customization as it was given: nothing of it is loaded yet.

    name: what tables call it. words: what prompts say for the concept; None where it is `<concept_name>`, of a file of
    ours. scale: how strongly it is to act.
    """

    name: str
    found: Found
    about: Mapping[str, Any]
    class_noun: str
    words: str | None
    scale: float

    @property
    def is_ours(self) -> bool:
        return self.words is None

    @property
    def key(self) -> str:
        """Another one for other files, words or strength."""
        path = self.found.path
        inside = path.rglob("*.safetensors") if path.is_dir() else (path,)
        weights = sorted({*self.found.files, *(file for file in inside if file.is_file())})
        notes = sorted({note for file in weights if (note := file.with_name("adapter_config.json")).is_file()})
        facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in (*weights, *notes)]
        return digest_of([facts, self.words, self.class_noun, self.scale])


def given(
    path: Path | Found, class_noun: str | None = None, words: str | None = None, scale: float = 1.0
) -> AuditTarget:
    """What a file or folder is, how its concept is named, and of what class it is.

    Args:
        path: also a name on the Hub.
        class_noun, words: where a file of another tool does not say them, or says them wrongly: "cat", "sks cat".
        scale: how strongly it is to act.

    Raises:
        UserError: it is nothing that can be read; its class noun or its words are not known; it has no such strength.
    """
    found = path if isinstance(path, Found) else inspect(path)
    if scale not in (0, 1) and found.kind in ALL_OR_NOTHING:
        raise UserError(f"{found.path} is a {found.kind}, which is there or not: its --scale can be 1 or 0.")
    named = path if isinstance(path, Path) and not path.exists() else found.path.resolve()  # on the Hub, or here
    name = found.path.stem if found.path.is_file() and named is not path else named.name
    if found.kind == "infusion adapter":
        about, _ = read_adapter_file(found.files[0])
        return AuditTarget(name, found, about | {"strength": scale}, about["class_noun"], None, scale)
    noun, trigger = class_noun or found.class_noun, words or found.trigger
    if found.kind in _BRING_WORDS and found.trigger and found.trigger not in (trigger or "").split():
        trigger = found.trigger
    if noun is None or trigger is None:
        missing = [
            *(["--class-noun, what kind of thing it is in the base model's words (cat)"] if noun is None else []),
            *(['--trigger, the words that name it in prompts ("sks cat")'] if trigger is None else []),
        ]
        raise UserError(f"{found.path} does not say what was taught: give {' and '.join(missing)}.")
    if found.kind == "Custom Diffusion" and not f" {trigger}".endswith(f" {noun}"):
        trigger = f"{trigger} {noun}"  # whose prompts name the concept by a word before its class noun
    about = {
        "concept_name": trigger,
        "words": trigger,
        "class_noun": noun,
        "method": found.kind,
        "paper": None,
        "settings": _said(found),
        "strength": scale,
        "training": {},
        "base": {"id": found.base or "not said"},
    }
    return AuditTarget(name, found, about, noun, trigger, scale)


_BRING_WORDS = ("textual inversion", "Custom Diffusion")  # of which their vectors are


def _said(found: Found) -> dict[str, Any]:
    """What is known of a file of another tool."""
    ranks = ", ".join(f"{rank} ({count} layers)" for rank, count in sorted(found.ranks.items()))
    said = {"made by": found.tool, "rank": ranks, "changes": found.touches, "step": found.step}
    return {name: value for name, value in said.items() if value not in (None, "")}


@dataclass(frozen=True)
class Model:
    """A customized model. concept: how prompts name it; base: applied to, where that is not the reference's."""

    concept: Named
    base: Base | None
    num_parameters: int


def opened(one: AuditTarget, base: Base, any_base: bool = False, config: str | None = None) -> Model:
    """The customized model of a file or folder.

    Args:
        config: of the base, where that is a single file.

    Raises:
        UserError: it does not fit the base.
    """
    if one.words is None:
        adapter = load_adapter(one.found.files[0], base, any_base)
        return Model(Strengthened(adapter, one.scale), None, adapter.num_parameters)
    own, token = customized(one.found, base.id, base.device, base.dtype, one.scale, config)
    if type(own.family) is not type(base.family) or own.latent_shape != base.latent_shape:
        raise UserError(
            f"{one.found.path} is a model of the family {own.family.architecture} for images of {own.size_px} px, "
            f'and "{base.id}" is of {base.family.architecture} for {base.size_px} px: give the base it was made from.'
        )
    words = one.words
    if token and one.found.trigger:  # a word of several vectors is several words to the text model
        words = " ".join(token if word == one.found.trigger else word for word in words.split())
    return Model(Words(words), own, one.found.num_parameters)


def digest_of(facts: Any) -> str:
    """Facts -> 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
