"""Customizations of any tool + their base + real images -> what each learnt and broke; what was drawn is kept."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from safetensors.torch import load_file, save_file

import infusion
from infusion.auditing.result import AuditResult, Curve, Plain
from infusion.auditing.target import AuditTarget, Model, digest_of, given, opened
from infusion.base import Base, load_base
from infusion.base.latents import square
from infusion.base.prompts import class_prompt, name_concept
from infusion.concepts.concept import Concept, load_concept
from infusion.errors import UserError, nearest, noting
from infusion.evaluation.drawing import decoded, draw, to_tensor
from infusion.evaluation.evaluate import ConceptImages, Evaluation, drawn_with, evaluate, latents_path
from infusion.evaluation.evaluators import Evaluators, find_evaluators
from infusion.evaluation.names import evaluator_names
from infusion.evaluation.plans import Plan, plan_for
from infusion.evaluation.reference import Reference
from infusion.files import whole_file
from infusion.metrics.memorisation import recalled
from infusion.toybox import TOYBOX
from infusion.toybox.scene import CLASSES
from infusion.training.stopping import Check, SelfCheck, choose

_PLAIN_NAME = "plain.safetensors"
_KEPT = 2  # how what is drawn is kept: from 2 on every image has a noise of its own


def audit(
    base: Base | str,
    path: str | Path,
    *,
    class_noun: str | None = None,
    trigger: str | None = None,
    images: str | Path | None = None,
    quick: bool = False,
    scale: float = 1.0,
    work_dir: str | Path | None = None,
) -> AuditResult:
    """Measure what a fine-tune of any tool learnt, and what it broke.

    Args:
        base: what it was trained on.
        path: a LoRA, Textual Inversion, Custom Diffusion or adapter file, a fine-tuned pipeline or checkpoint; also a
            name on the Hub.
        class_noun, trigger: where the file does not say them: "cat", "sks cat".
        images: a folder, the images it was trained on; adds identity, copies and class leak.
        quick: few prompts and seeds: a minute, wide intervals.
        scale: how strongly it acts.
        work_dir: where what was drawn is kept, for the next audit; without one it is not kept.

    Raises:
        UserError: the file cannot be read, does not say what was taught, or does not fit the base.
    """
    target = given(Path(path), class_noun, trigger, scale)
    base = load_base(base) if isinstance(base, str) else base
    check_class_noun(base.id, target.class_noun)
    concept = load_images(images, target.class_noun, target) if images is not None else None
    squares = [square(image, base.size_px) for image in concept.images] if concept else []
    plan = plan_for(target.class_noun, base.id == TOYBOX, quick)
    names = evaluator_names(base.id)
    evaluators = find_evaluators(names, base.device)
    with TemporaryDirectory(prefix="infusion-audit-") as temporary:
        folder = Path(work_dir) if work_dir is not None else Path(temporary)
        shared = Audit(base, target.class_noun, plan, evaluators, names, squares, folder)
        return shared.of(target, opened(target, base))


def check_class_noun(base_id: str, class_noun: str) -> None:
    """Raises UserError: the base is the toybox, whose judges know its own classes only."""
    if base_id == TOYBOX and class_noun not in CLASSES:
        raise UserError(
            f'The class noun is "{class_noun}", which the judges of the toybox cannot see.'
            f"{nearest(class_noun, CLASSES)} They know: {', '.join(CLASSES)}."
        )


def load_images(folder: str | Path, class_noun: str, target: AuditTarget) -> Concept:
    """The real images of what a target was taught.

    Raises:
        UserError: they cannot be read, are fewer than two, or by their captions are of another thing than a file of
            ours.
    """
    ours = target.about["concept_name"] if target.is_ours else None
    concept = load_concept(folder, class_noun, ours or "concept")
    if len(concept.images) < 2:
        raise UserError(f"{folder} has one image; a scale of likeness needs two or more of the same subject.")
    mistakes: list[str] = []
    for source, caption in zip(concept.sources, concept.captions, strict=True):
        with noting(mistakes, f"{source}: "):
            name_concept(caption or concept.placeholder, concept.placeholder, concept.class_noun)
    if mistakes and ours:
        raise UserError(f'The images in {folder} are not of the class "{class_noun}". {mistakes[0]}')
    return concept


class Audit:
    """Everything that audits on one base, of one class, share: the base's own images and measures.

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
        self.base_digest = base.digest()
        self.ground = digest_of([infusion.__version__, _KEPT, self.base_digest, str(base.device), asdict(plan)])
        self.folder = folder
        kept = folder / digest_of([self.ground, class_noun])
        self.reference = Reference(base, class_noun, plan, evaluators, folder=kept)
        self.real = ConceptImages(to_tensor(training)) if training else None
        self._untouched: Evaluation | None = None

    @property
    def untouched(self) -> Evaluation:
        """The base model's own measures."""
        if self._untouched is None:
            self._untouched = evaluate(self.reference, None, self.real)
        return self._untouched

    def num_to_draw(self, models: Sequence[AuditTarget]) -> int:
        """How many images are not there yet."""
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

    def latents_dir(self, one: AuditTarget) -> Path:
        """Where the latents of a customized model are kept."""
        return self.folder / digest_of([self.ground, one.key])

    def checked(self, one: AuditTarget, step: int, watched_by: str, look: Callable[[], Check]) -> Check:
        """The check of a checkpoint: what `look` sees, or saw before with the same watching and training images."""
        real = [hashlib.sha256(image.tobytes()).hexdigest() for image in self.training]
        seen = digest_of([infusion.__version__, self.base_digest, one.key, watched_by, real])
        path = self.folder / f"check-{seen}.json"  # whatever else is drawn of it
        if not path.exists():
            check = look()
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(asdict(check)))
        return replace(Check(**json.loads(path.read_text())), step=step)

    def of(self, one: AuditTarget, model: Model) -> AuditResult:
        """All that is reported of one customized model."""
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

    def _recalled(self, one: AuditTarget, model: Model) -> Plain | None:
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


def by_step(run: Sequence[AuditTarget]) -> dict[int, AuditTarget]:
    """The checkpoints of a run in their order; one that says no step of its own stands one interval after the last."""
    found: dict[int, AuditTarget] = {}
    for one in run:
        step, last = one.found.step, max(found, default=0)
        found[last + (last // len(found) if found else 1) if step is None else step] = one
    return found


def curve(
    shared: Audit,
    steps: Mapping[int, AuditTarget],
    open_model: Callable[[AuditTarget], Model],
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

    def look(step: int, one: AuditTarget) -> Check:
        model = open_model(one)
        return rule(model.concept, step, math.nan, model.base)

    checks = []
    for step, one in steps.items():
        checks.append(shared.checked(one, step, watched_by, partial(look, step, one)))
        done(checks[-1])
    return Curve(checks, choose(checks, steps.keys()))
