"""Customizations of any tool + their base + real pictures -> what each learnt and broke; what was drawn is kept."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from infusion.adapter_file import load_adapter, read_adapter_file
from infusion.base import Base
from infusion.base.customization import Named, Words
from infusion.errors import UserError
from infusion.evaluation import (
    LATENTS_NAME,
    ConceptPictures,
    Evaluation,
    Plan,
    Reference,
    Witnesses,
    drawn_with,
    evaluate,
    to_tensor,
)
from infusion.foreign import Found, customized, inspect
from infusion.stopping import Check, SelfCheck, choose
from infusion.verdict import Audited


@dataclass(frozen=True)
class Given:
    """A customization as it was given: nothing of it is loaded yet.

    name: what tables call it. words: what prompts say for the concept; None where it is `<concept_name>`, of a file of
    ours.
    """

    name: str
    found: Found
    about: Mapping[str, Any]
    class_noun: str
    words: str | None

    @property
    def is_ours(self) -> bool:
        return self.words is None

    @property
    def key(self) -> str:
        """Another one for other files, words or strength."""
        there = [self.found.path] if self.found.path.is_file() else sorted(self.found.path.rglob("*"))
        facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in there if file.is_file()]
        return _digest([facts, self.words, self.class_noun])


_CHECKPOINT = re.compile(r"checkpoint-\d+|.*[-_](steps?-?)?\d{4,}")


def is_run(path: Path) -> bool:
    """Whether it is a folder of checkpoints of one run, and not one customization."""
    if not path.is_dir() or (path / "model_index.json").exists():
        return False
    return sum(bool(_CHECKPOINT.fullmatch(inside.stem)) for inside in path.iterdir()) > 1


def given(path: Path | Found, class_noun: str | None = None, words: str | None = None) -> Given:
    """What a file or folder is, how its concept is named, and of what class it is.

    Args:
        class_noun, words: where the file does not say them, or says them wrongly: "cat", "sks cat".

    Raises:
        UserError: it is nothing that can be read; its class noun or its words are not known.
    """
    found = path if isinstance(path, Found) else inspect(path)
    name = found.path.stem if found.path.is_file() else found.path.name
    if found.kind == "infusion adapter":
        about, _ = read_adapter_file(found.path)
        return Given(name, found, about, about["class_noun"], None)
    noun, trigger = class_noun or found.class_noun, words or found.trigger
    if found.kind in ("textual inversion", "Custom Diffusion") and found.trigger not in (
        None,
        *(trigger or "").split(),
    ):
        trigger = found.trigger  # the word that its vectors are of
    if noun is None or trigger is None:
        missing = [
            *(["--class-noun, what kind of thing it is in the base model's words (cat)"] if noun is None else []),
            *(['--trigger, the words that name it in prompts ("sks cat")'] if trigger is None else []),
        ]
        raise UserError(f"{found.path} does not say what was taught: give {' and '.join(missing)}.")
    if found.kind == "Custom Diffusion" and noun not in trigger:
        trigger = f"{trigger} {noun}"  # whose prompts name the concept by a word before its class noun
    about = {
        "concept_name": trigger,
        "words": trigger,
        "class_noun": noun,
        "method": found.kind,
        "paper": None,
        "settings": _said(found),
        "training": {},
        "base": {"id": found.base or "not said"},
    }
    return Given(name, found, about, noun, trigger)


def _said(found: Found) -> dict[str, Any]:
    """What is known of a file of another tool."""
    ranks = ", ".join(f"{rank} ({count} layers)" for rank, count in sorted(found.ranks.items()))
    said = {"made by": found.tool, "rank": ranks, "changes": found.touches, "step": found.step}
    return {name: value for name, value in said.items() if value not in (None, "")}


@dataclass(frozen=True)
class Model:
    """A customized model. concept: how prompts name it; base: what it is laid on, where that is not the reference's."""

    concept: Named
    base: Base | None
    num_parameters: int


def opened(one: Given, base: Base, scale: float = 1.0, any_base: bool = False, config: str | None = None) -> Model:
    """The customized model of a file or folder.

    Args:
        scale: how strongly it acts, where it is no adapter of ours.
        config: of the base, where that is a single file.

    Raises:
        UserError: it does not fit the base.
    """
    if one.words is None:
        adapter = load_adapter(one.found.path, base, any_base)
        return Model(adapter, None, adapter.num_parameters)
    own, token = customized(one.found, base.id, base.device, base.dtype, scale, config)
    words = one.words
    if token and one.found.trigger:  # a word of several vectors is several words to the text model
        words = words.replace(one.found.trigger, token)
    return Model(Words(words), own, one.found.num_parameters)


class Audit:
    """Everything that audits on one base, of one class, share: the base's own pictures and measures.

    folder: where drawn latents are kept, so that what was drawn before is not drawn again.
    """

    def __init__(
        self,
        base: Base,
        class_noun: str,
        plan: Plan,
        witnesses: Witnesses,
        names: Mapping[str, str | None],
        training: Sequence[Image.Image],
        folder: Path,
        report: Callable[[int], None] | None = None,
    ) -> None:
        self.names = names
        self.training = training
        self.ground = _digest([base.digest(), asdict(plan)])
        self.folder = folder
        kept = folder / f"{class_noun.replace(' ', '-')}-{self.ground}"
        self.reference = Reference(base, class_noun, plan, witnesses, report, kept)
        self.real = ConceptPictures(to_tensor(training)) if training else None
        self._untouched: Evaluation | None = None

    @property
    def untouched(self) -> Evaluation:
        """The base model's own measures."""
        if self._untouched is None:
            self._untouched = evaluate(self.reference, None, self.real)
        return self._untouched

    def num_to_draw(self, models: Sequence[Given], scale: float = 1.0) -> int:
        """How many pictures are not there yet."""
        plan, drawing = self.reference.plan, self.reference.plan.drawing
        asked, of_class, num = len(plan.prompt_of), drawing.num_class_pictures, drawing.latents_per_prompt
        probes = {"s1": plan.unrelated, "s2": plan.siblings, "s3": plan.prompts}
        shared = {"images": asked, "null_images": asked, "class_images": of_class}
        shared |= {name: num * len(texts) for name, texts in probes.items()}
        missing = [num for name, num in shared.items() if not self.reference.kept_path(name).exists()]
        own = [one for one in models if not (self.latents_dir(one, scale) / LATENTS_NAME).exists()]
        return sum(missing) + len(own) * (asked + of_class)

    def latents_dir(self, one: Given, scale: float = 1.0) -> Path:
        """Where the latents of a customized model are kept."""
        return self.folder / f"{self.ground}-{_digest([one.key, scale])}"

    def of(self, one: Given, model: Model, scale: float = 1.0) -> Audited:
        """All that is told of one customized model."""
        started = time.monotonic()
        drawn = drawn_with(self.reference, model.concept, self.latents_dir(one, scale), model.base)
        own = evaluate(self.reference, model.concept, self.real, drawn, model.base)
        base = self.reference.base
        return Audited(
            name=one.name,
            about=dict(one.about) | {"base": {"fingerprint": base.fingerprint()} | one.about["base"]},
            file_name=one.found.path.name,
            file_bytes=one.found.file_bytes,
            num_parameters=model.num_parameters,
            base=base.id,
            plan=self.reference.plan,
            own=own,
            untouched=self.untouched,
            nulls=self.reference.nulls,
            training=self.training,
            witnesses=self.names,
            seconds=time.monotonic() - started,
        )


@dataclass(frozen=True)
class Curve:
    """Checkpoints of one run, by step, and the step to keep."""

    checks: Sequence[Check]
    kept: Check


def curve(rule: SelfCheck, models: Mapping[int, Callable[[], Model]], done: Callable[[Check], None]) -> Curve:
    """Look at every checkpoint as `--stop auto` looks at a training, and choose as it does.

    Args:
        models: what opens the model of a step, by step; one is held at a time.
        done: called with every check.
    """
    checks = []
    for step, open_model in models.items():
        model = open_model()
        checks.append(rule(model.concept, step, float("nan"), model.base))
        done(checks[-1])
    return Curve(checks, choose(checks, models.keys()))


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
