"""An adapter file, its images and an evaluation of it -> the model card of its repository on the Hub."""

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

import infusion
from infusion.errors import UserError
from infusion.hub import ADAPTER_NAME, is_repo_id
from infusion.intervals import Figure
from infusion.methods import METHODS
from infusion.methods.adapter_file import read_adapter_file
from infusion.methods.method import Method
from infusion.metrics.catalogue import arrow, measure_of
from infusion.pages.numbers import format_count, has_interval
from infusion.settings import from_mapping
from infusion.sharing.audit_record import AuditRecord
from infusion.toybox import TOYBOX

_TAGS = ("text-to-image", "diffusers", "infusion")
# What the Hub calls models of a family, by the family's architecture; others by its name.
_FAMILY_TAGS = {
    "stable-diffusion-v1": "stable-diffusion",
    "stable-diffusion-v2": "stable-diffusion",
    "stable-diffusion-xl-v1-base": "stable-diffusion-xl",
    "stable-diffusion-3": "sd3",
    "flux-1": "flux",
}
_LOCAL_BASE = "folder-of-the-base"
_OF_ONE_ADAPTER = ("concept_name", "class_noun", "method", "settings", "training")


@dataclass(frozen=True)
class Shown:
    """An image in the repository. path: there. prompt, seed: what it was drawn from, where that is known."""

    path: str
    prompt: str | None = None
    seed: str | None = None


@dataclass(frozen=True)
class Described:
    """What an adapter file says of itself, and what follows from it. base_id: on the Hub, if it is there."""

    about: Mapping[str, Any]
    method: Method
    num_parameters: int
    num_bytes: int
    trigger_phrase: str
    base_id: str | None

    @property
    def placeholder(self) -> str:
        return f"<{self.about['concept_name']}>"

    @property
    def is_toybox(self) -> bool:
        return bool(self.about["base"]["id"] == TOYBOX)

    @property
    def loadable_base(self) -> str:
        """What `load_base` takes for it: on another machine a folder is somewhere else."""
        return TOYBOX if self.is_toybox else self.base_id or _LOCAL_BASE


def describe(path: Path) -> Described:
    """Raises UserError: the file is unusable, or of a method that is not known here."""
    about, tensors = read_adapter_file(path)
    if about["method"] not in METHODS:
        raise UserError(f'{path} was made by the method "{about["method"]}"; known are: {", ".join(METHODS)}.')
    with safe_open(path, framework="pt") as file:
        trigger_phrase = file.metadata().get("modelspec.trigger_phrase", f"<{about['concept_name']}>")
    base_id = about["base"]["id"]
    return Described(
        about=about,
        method=from_mapping(METHODS[about["method"]], about["settings"]),
        num_parameters=about.get("num_parameters", sum(tensor.numel() for tensor in tensors.values())),
        num_bytes=path.stat().st_size,
        trigger_phrase=trigger_phrase,
        base_id=base_id if is_repo_id(base_id) and not os.path.exists(base_id) else None,
    )


def read_evaluation(path: Path, described: Described) -> AuditRecord:
    """What `infusion audit` wrote of this adapter; where folders lie is left out.

    Raises:
        UserError: the file cannot be read, is something else, or is of another adapter.
    """
    try:
        content = _of_this(json.loads(path.read_text(encoding="utf-8"))["audits"], described)
        found = AuditRecord.from_json(content)
        of = {name: found.adapter[name] for name in _OF_ONE_ADAPTER}
        num_bytes = found.adapter["bytes"]
    except OSError as error:
        raise UserError(f"Cannot read the evaluation {path}: {error.strerror}.") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is no evaluation: give the JSON file that `infusion audit` writes.") from error
    if num_bytes != described.num_bytes or of != {name: described.about[name] for name in of}:
        raise UserError(
            f"{path} is the evaluation of another adapter, or of another training of {described.placeholder}: measure "
            "this one, with `infusion audit`."
        )
    evaluators = {kind: _public_name(name) for kind, name in found.evaluators.items() if name}
    return replace(found, base=_public_name(found.base), evaluators=evaluators)


def _figures(evaluation: AuditRecord) -> dict[str, Figure]:
    """What could be measured."""
    figures = {name: measured.figure for name, measured in evaluation.measures.items()}
    return {name: figure for name, figure in figures.items() if math.isfinite(figure.value)}


def _drawn(evaluation: AuditRecord) -> str:
    num_prompts, num_seeds = len(evaluation.plan["prompts"]), len(evaluation.seeds)
    return f"{format_count(num_prompts, 'prompt')} × {format_count(num_seeds, 'seed')}"


def _of_this(audits: Sequence[Any], described: Described) -> Any:
    """The audit of an adapter, of several; the first, where none is."""
    return next((one for one in audits if one["adapter"]["bytes"] == described.num_bytes), audits[0])


def card(
    described: Described, repo_id: str, images: Sequence[Shown] = (), evaluation: AuditRecord | None = None
) -> str:
    """The whole README.md: metadata as the Hub reads it, then text."""
    chapters = [
        _introduction(described),
        _gallery(images),
        _usage(described, repo_id),
        _limits(described),
        _measured(evaluation) if evaluation else "",
        _facts(described),
    ]
    metadata = _metadata(described, images, evaluation).to_yaml()
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(filter(None, chapters)) + "\n"


# --- metadata ---


def _metadata(described: Described, images: Sequence[Shown], evaluation: AuditRecord | None) -> ModelCardData:
    loader = described.method.diffusers_loader
    family = described.about["base"].get("family", "stable-diffusion-v1")  # older files are of these alone
    family = _FAMILY_TAGS.get(family, family)
    tags = [
        *_TAGS,
        family,
        f"{family}-diffusers",
        described.about["method"],
        *([loader.removeprefix("load_").removesuffix("_weights")] if loader else []),
    ]
    widget = [{"text": one.prompt, "output": {"url": one.path}} for one in images if one.prompt]
    return ModelCardData(
        base_model=described.base_id,
        base_model_relation="adapter" if described.base_id else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
        instance_prompt=described.trigger_phrase,
        widget=widget or None,
        model_name=described.about["concept_name"] if evaluation else None,
        eval_results=_results(evaluation) if evaluation else None,
    )


def _results(evaluation: AuditRecord) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type="infusion-audit",
            dataset_name=f"infusion audit, {_drawn(evaluation)}",
            dataset_args={"base": evaluation.base, "witnesses": dict(evaluation.evaluators)},
            metric_type=name,
            metric_name=_label(name, figure),
            metric_value=figure.value,
            metric_args={"low": figure.low, "high": figure.high, "num": figure.num} if has_interval(figure) else None,
        )
        for name, figure in _figures(evaluation).items()
    ]


def _label(name: str, figure: Figure) -> str:
    """ "identity ↑ (95% interval 0.51 to 0.70)"."""
    interval = f" (95% interval {_interval(figure)})" if has_interval(figure) else ""
    return measure_of(name).label + arrow(measure_of(name)) + interval


# --- text ---


def _introduction(described: Described) -> str:
    about = described.about
    return f"""# {about["concept_name"]}

One particular {about["class_noun"]}, taught to {_base_told(described)} by the method `{about["method"]}`
({about["paper"]}). In prompts it is called `{described.placeholder}`; a plain "{about["class_noun"]}" does not mean it.
Made with the Python package `infusion` {infusion.__version__}."""


def _base_told(described: Described) -> str:
    if described.base_id:
        return f"the text-to-image model [{described.base_id}](https://huggingface.co/{described.base_id})"
    if described.is_toybox:
        return "the small model that comes embedded in `infusion`, `toybox`,"
    return f"the text-to-image model {_code(_public_name(described.about['base']['id']))}, which lay in a folder,"


def _gallery(images: Sequence[Shown]) -> str:
    lines = []
    for one in images:
        told = _code(one.prompt) + (f", seed {_code(one.seed)}" if one.seed else "") if one.prompt else ""
        lines.append(f"![{Path(one.path).stem}]({one.path})" + (f"<br>{told}" if told else ""))
    return "\n\n".join(lines)


def _usage(described: Described, repo_id: str) -> str:
    prompt, base = f"a {described.placeholder} on the beach", described.loadable_base
    words = ["infusion", "generate", prompt, "--concept", repo_id, "--seed", "0..3", "-o", "out"]
    words += ["--base", base] if base == _LOCAL_BASE else []
    text = f"""## How to use it

```bash
{" ".join(word if word == "0..3" else shlex.quote(word) for word in words)}
```

```python
import infusion

base = infusion.load_base("{base}")
adapter = infusion.load_adapter("{repo_id}", base)
images = infusion.generate(base, "{prompt}", [adapter], seeds=range(4))
images[0].save("beach.png")
```"""
    loader = described.method.diffusers_loader
    if loader and not described.is_toybox:
        text += f"""

diffusers reads the file, too; a prompt then says `{described.trigger_phrase}`:

```py
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{base}")
pipe.{loader}("{repo_id}", weight_name="{ADAPTER_NAME}")
image = pipe("a {described.trigger_phrase} on the beach").images[0]
```"""
    return text


def _limits(described: Described) -> str:
    notes = [
        *described.method.notes,
        "It is for the base model it was trained on: one with other weights is refused, unless asked for with "
        "`--any-base`.",
    ]
    return "## What to expect\n\n" + "\n".join(f"- {note}" for note in notes)


def _measured(evaluation: AuditRecord) -> str:
    evaluators = ", ".join(f"{kind} {_code(name)}" for kind, name in evaluation.evaluators.items())
    answers = "\n".join(f"- {question} **{answer}.** {_plain(told)}" for question, answer, told in evaluation.answers)
    rows = "\n".join(
        f"| {measure_of(name).label}{arrow(measure_of(name))} | {figure.value:.3g} | "
        f"{_interval(figure) if has_interval(figure) else 'no spread'} | {figure.num} |"
        for name, figure in _figures(evaluation).items()
    )
    num = evaluation.num_images
    real = f" and {num} real images of it" if num else ""
    return f"""## What was measured

By `infusion audit`: {_drawn(evaluation)}{real}, on the base
{_code(evaluation.base)}; looked at by {evaluators}. ↑ more is better, ↓ less is better.

{answers}

| measure | value | 95% interval | n |
|---|---|---|---|
{rows}"""


def _facts(described: Described) -> str:
    about = described.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    rows = {
        "file": f"{_code(ADAPTER_NAME)}, {described.num_bytes:,} bytes, {described.num_parameters:,} parameters",
        "base": _code(_public_name(about["base"]["id"])),
        "created": f"{about['created']} with {versions}",
        **{f"method: {name}": _code(value) for name, value in about["settings"].items()},
        **{f"training: {name}": _code(value) for name, value in about["training"].items()},
    }
    lines = "\n".join(f"| {_plain(name)} | {_plain(value)} |" for name, value in rows.items())
    return f"## How it was made\n\n| | |\n|---|---|\n{lines}"


# --- words and figures ---


def _code(value: object) -> str:
    """As code, on one line: `<name>` as plain text would be an HTML tag to a reader of Markdown."""
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`"


def _plain(text: str) -> str:
    """In a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def _public_name(name: str) -> str:
    """A name on the Hub or of ours; of a folder its last part only, as where it lies is nobody's business."""
    return name if name == TOYBOX or (is_repo_id(name) and not os.path.exists(name)) else Path(name).name


def _interval(figure: Figure) -> str:
    return f"{figure.low:.3g} to {figure.high:.3g}"
