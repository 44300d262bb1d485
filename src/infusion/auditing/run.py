"""Customizations of any tool + their base + real pictures -> what each learnt and broke; what was drawn is kept."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file

import infusion
from infusion.auditing.result import AuditResult, Curve, Plain
from infusion.base import Base
from infusion.base.customization import Named, Strengthened, Words
from infusion.base.prompts import class_prompt
from infusion.errors import UserError
from infusion.evaluation.drawing import decoded, draw, to_tensor
from infusion.evaluation.evaluate import ConceptImages, Evaluation, drawn_with, evaluate, latents_path
from infusion.evaluation.evaluators import Evaluators
from infusion.evaluation.plans import Plan
from infusion.evaluation.reference import Reference
from infusion.files import whole_file
from infusion.foreign import ALL_OR_NOTHING, Found, customized, inspect
from infusion.methods.adapter_file import load_adapter, read_adapter_file
from infusion.metrics import recalled
from infusion.training.stopping import Check, SelfCheck, choose

_PLAIN_NAME = "plain.safetensors"
_KEPT = 2  # how what is drawn is kept: from 2 on every picture has a noise of its own


@dataclass(frozen=True)
class Given:
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
        return _digest([facts, self.words, self.class_noun, self.scale])


def given(path: Path | Found, class_noun: str | None = None, words: str | None = None, scale: float = 1.0) -> Given:
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
        return Given(name, found, about | {"strength": scale}, about["class_noun"], None, scale)
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
    return Given(name, found, about, noun, trigger, scale)


_BRING_WORDS = ("textual inversion", "Custom Diffusion")  # of which their vectors are


def _said(found: Found) -> dict[str, Any]:
    """What is known of a file of another tool."""
    ranks = ", ".join(f"{rank} ({count} layers)" for rank, count in sorted(found.ranks.items()))
    said = {"made by": found.tool, "rank": ranks, "changes": found.touches, "step": found.step}
    return {name: value for name, value in said.items() if value not in (None, "")}


@dataclass(frozen=True)
class Model:
    """A customized model. concept: how prompts name it; base: what it is applied to, where not the reference's."""

    concept: Named
    base: Base | None
    num_parameters: int


def opened(one: Given, base: Base, any_base: bool = False, config: str | None = None) -> Model:
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
            f"{one.found.path} is a model of the family {own.family.architecture} for pictures of {own.size_px} px, "
            f'and "{base.id}" is of {base.family.architecture} for {base.size_px} px: give the base it was made from.'
        )
    words = one.words
    if token and one.found.trigger:  # a word of several vectors is several words to the text model
        words = " ".join(token if word == one.found.trigger else word for word in words.split())
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
        evaluators: Evaluators,
        names: Mapping[str, str | None],
        training: Sequence[Image.Image],
        folder: Path,
    ) -> None:
        self.names = names
        self.training = training
        self.ground = _digest([infusion.__version__, _KEPT, base.digest(), str(base.device), asdict(plan)])
        self.folder = folder
        kept = folder / _digest([self.ground, class_noun])
        self.reference = Reference(base, class_noun, plan, evaluators, folder=kept)
        self.real = ConceptImages(to_tensor(training)) if training else None
        self._untouched: Evaluation | None = None

    @property
    def untouched(self) -> Evaluation:
        """The base model's own measures."""
        if self._untouched is None:
            self._untouched = evaluate(self.reference, None, self.real)
        return self._untouched

    def num_to_draw(self, models: Sequence[Given]) -> int:
        """How many pictures are not there yet."""
        plan, drawing = self.reference.plan, self.reference.plan.drawing
        asked, of_class, num = len(plan.prompt_of), drawing.num_class_pictures, drawing.latents_per_prompt
        probes = {"s1": plan.unrelated, "s2": plan.siblings, "s3": plan.prompts}
        shared = {"images": asked, "null_images": asked, "class_images": of_class}
        shared |= {name: num * len(texts) for name, texts in probes.items()}
        missing = [num for name, num in shared.items() if not self.reference.kept_path(name).exists()]
        for one in models:
            folder = self.latents_dir(one)
            own = {
                latents_path(self.reference, folder): asked + of_class,
                folder / _PLAIN_NAME: of_class if self.real else 0,
            }
            missing += [num for path, num in own.items() if not path.exists()]
        return sum(missing)

    def latents_dir(self, one: Given) -> Path:
        """Where the latents of a customized model are kept."""
        return self.folder / _digest([self.ground, one.key])

    def checked(self, one: Given, step: int, watched_by: str, look: Callable[[], Check]) -> Check:
        """The check of a checkpoint: what `look` sees, or saw before with the same watching and training pictures."""
        real = [hashlib.sha256(image.tobytes()).hexdigest() for image in self.training]
        seen = _digest([infusion.__version__, self.reference.base.digest(), one.key, watched_by, real])
        path = self.folder / f"check-{seen}.json"  # whatever else is drawn of it
        if not path.exists():
            check = look()
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(asdict(check)))
        return replace(Check(**json.loads(path.read_text())), step=step)

    def of(self, one: Given, model: Model) -> AuditResult:
        """All that is told of one customized model."""
        started = time.monotonic()
        drawn = drawn_with(self.reference, model.concept, self.latents_dir(one), model.base)
        plain = self._recalled(one, model)
        own = evaluate(self.reference, model.concept, self.real, drawn, model.base, plain and plain.images)
        base = self.reference.base
        return AuditResult(
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
            recalled=plain,
            training=self.training,
            evaluators=self.names,
            seconds=time.monotonic() - started,
        )

    def _recalled(self, one: Given, model: Model) -> Plain | None:
        """What is drawn from the words for the subject alone, without guidance, which keeps nearest to memory."""
        if not self.real:
            return None
        base, plan = model.base or self.reference.base, self.reference.plan
        unguided = replace(plan, drawing=replace(plan.drawing, guidance_scale=1.0))
        texts, report = [class_prompt(f"<{model.concept.concept_name}>")], self.reference.report
        path = self.latents_dir(one) / _PLAIN_NAME
        if not path.exists():
            latents = draw(base, unguided, texts, self.reference.class_seeds, [model.concept], report)
            with whole_file(path) as temporary:
                save_file({"plain": latents.contiguous()}, temporary)
        images = decoded(base, load_file(path)["plain"])
        return Plain(images, recalled(images, self.real.training))


def by_step(run: Sequence[Given]) -> dict[int, Given]:
    """The checkpoints of a run in their order; one that says no step of its own stands one interval after the last."""
    found: dict[int, Given] = {}
    for one in run:
        step, last = one.found.step, max(found, default=0)
        found[last + (last // len(found) if found else 1) if step is None else step] = one
    return found


def curve(
    shared: Audit,
    steps: Mapping[int, Given],
    open_model: Callable[[Given], Model],
    rule: SelfCheck,
    watched_by: str,
    done: Callable[[Check], None],
) -> Curve:
    """Look at every checkpoint as `--stop auto` looks at a training, and choose as it does.

    Args:
        steps: the checkpoints of a run; one is opened at a time, and looked at but once.
        watched_by: who looks, by `looked_with`.
        done: called with every check.
    """

    def look(step: int, one: Given) -> Check:
        model = open_model(one)
        return rule(model.concept, step, math.nan, model.base)

    checks = []
    for step, one in steps.items():
        checks.append(shared.checked(one, step, watched_by, partial(look, step, one)))
        done(checks[-1])
    return Curve(checks, choose(checks, steps.keys()))


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
