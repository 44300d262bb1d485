"""What a file or folder is, and a base -> the base as the customization makes it: another model, with weights alone."""

import math
import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infusion.base import Base, load_base
from infusion.errors import UserError, first_line
from infusion.foreign.found import PARTS, Found, token_of, vectors_of
from infusion.foreign.layer_names import LayerNames
from infusion.foreign.tensor_files import TensorFile, as_object, read_json, read_tensor_file, shown
from infusion.foreign.weight_changes import LayerChange, changed_weights, layer_changes

_PEFT_KINDS = ("LORA", "LOHA", "LOKR")
_CHANGED_BASES = ("pissa", "olora", "corda", "lora_ga")


def customized(
    found: Found,
    base_name_or_path: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
) -> tuple[Base, str | None]:
    """A model in which a customization is in effect, and what its prompts say for the trigger.

    Its weights W become W + scale (W' - W), where W' are the customization's; so every kind has a strength, and at 0
    the base is left as it is, to the bit. Nothing of the file is left out in silence: what cannot be read is refused.

    Args:
        found: what `inspect` said.
        base_name_or_path: what it is laid on, as `load_base` takes it; of no part for a whole pipeline.
        scale: how strongly; a Textual Inversion and a whole pipeline are there or not, 1 or 0.

    Returns:
        the model, and the words that its prompts read for `found.trigger` (for words with several vectors, that is a
        word for each), None where the file does not say what prompts are to say.

    Raises:
        UserError: it does not fit the base, is damaged, is an adapter of this package, or has no such strength.
    """
    if not math.isfinite(scale):
        raise UserError(f"A strength of {scale} cannot be: give a number, 1 for the customization as it was trained.")
    if found.kind == "infusion adapter":
        raise UserError(f"{found.path} is an adapter of this package: load it with load_adapter.")
    if scale not in (0, 1) and found.kind in ("textual inversion", "pipeline", "single-file checkpoint"):
        raise UserError(f"A {found.kind} is there or not, so it has no strength of {scale:g}: give 1 or 0.")
    if found.kind in ("pipeline", "single-file checkpoint"):
        return load_base(found.path if scale else base_name_or_path, device, dtype), found.trigger
    base = load_base(base_name_or_path, device, dtype)
    if scale == 0:
        return base, found.trigger
    base.id = str(found.path)
    files = [read_tensor_file(path) for path in found.files]
    words = [file for file in files if vectors_of(file.shapes)]
    try:
        if found.kind == "fine-tuned weights":
            _replace_parts(base, files, scale)
        else:
            _change_layers(base, [file for file in files if file not in words], scale)
        added = [_add_words(base, file) for file in words]
    except UserError as error:
        raise UserError(f"{found.path} cannot be laid on {base_name_or_path}: {error}") from error
    return base, added[0] if len(added) == 1 else found.trigger


# --- weights ---


@torch.no_grad()
def _change_layers(base: Base, files: list[TensorFile], scale: float) -> None:
    """Every layer that a file has tensors for, changed in place."""
    names = LayerNames(base.pipeline, base.family.network)
    for file in files:
        part = file.path.parent.name if file.path.parent.name in PARTS else None
        changes = layer_changes(_in_diffusers_names(base, file, names))
        scales = _PeftScales(file)
        for layer, change in changes.items():
            place = names.find(layer if part is None or part == base.family.network else f"{part}.{layer}")
            if place is None:
                raise UserError(f'the base has no layer "{shown(layer, 120)}"; it was made for another model.')
            change.scale = scales.of(place, change)
            module: Any = names.modules[place]
            for leaf, wanted in changed_weights(change, module.weight, module.bias).items():
                _move(getattr(module, leaf), wanted, scale, ".".join([*place, leaf]))


def _move(weight: nn.Parameter, wanted: Tensor, scale: float, name: str) -> None:
    """W + scale (W' - W), in place."""
    there = weight.detach().float()
    moved = (wanted if scale == 1 else there + scale * (wanted - there)).to(weight.dtype)
    if not moved.isfinite().all():
        raise UserError(f'at a strength of {scale:g}, "{name}" would hold numbers that are not finite.')
    weight.data.copy_(moved)


def _in_diffusers_names(base: Base, file: TensorFile, names: LayerNames) -> dict[str, Tensor]:
    """The tensors of a file; of a transformer's, by the names that diffusers gives them where they have others."""
    tensors = file.tensors()
    convert = getattr(type(base.pipeline), "lora_state_dict", None)
    known = all(names.find(layer) for layer in layer_changes(tensors))
    if known or convert is None or base.family.network == "unet":
        return tensors
    options = {"return_alphas": True} if "return_alphas" in signature(convert).parameters else {}
    try:
        converted = convert(dict(tensors), **options)
    except Exception as error:  # whatever diffusers' converters stumble over
        raise UserError(f"diffusers cannot tell which layers it is for ({shown(first_line(error), 200)}).") from error
    if not options:
        return converted
    alphas = {
        f"{name.removesuffix('.alpha')}.alpha": torch.tensor(alpha) for name, alpha in (converted[1] or {}).items()
    }
    return converted[0] | alphas


class _PeftScales:
    """How strongly factors count where that is said beside them: in PEFT's adapter_config.json, or the metadata."""

    def __init__(self, file: TensorFile) -> None:
        beside = file.path.parent / "adapter_config.json"
        within = as_object(file.metadata.get("lora_adapter_metadata"))
        self._configs: dict[str, dict[str, Any]] = {}  # by part; "" for every part
        if beside.is_file() and file.path.stem == "adapter_model":
            self._configs[""] = read_json(beside)
        for name, value in within.items():
            part, _, key = name.partition(".")
            self._configs.setdefault(part, {})[key] = value
        for config in self._configs.values():
            kind, start = config.get("peft_type", "LORA"), config.get("init_lora_weights")
            if kind not in _PEFT_KINDS:
                raise UserError(f"it is PEFT's {shown(kind)}; of PEFT's kinds, {', '.join(_PEFT_KINDS)} are read.")
            if isinstance(start, str) and start.lower().startswith(_CHANGED_BASES):
                raise UserError(f"it started from {shown(start)}, which changes the base as well; save it converted.")

    def of(self, place: tuple[str, str], change: LayerChange) -> float | None:
        """alpha / rank of a layer, or alpha / sqrt(rank) where it is rank-stabilized (arXiv 2312.03732)."""
        config = self._configs.get(place[0], self._configs.get(""))
        if config is None:
            return None
        rank = change.rank or self._value(config, "rank_pattern", place[1], config.get("r"))
        alpha = self._value(config, "alpha_pattern", place[1], config.get("lora_alpha", config.get("alpha")))
        if alpha is None or not rank:
            return None
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    @staticmethod
    def _value(config: Mapping[str, Any], patterns: str, path: str, default: Any) -> float | None:
        """What is said of a layer, by the end of its path, or else of all."""
        own = config.get(patterns)
        for pattern, value in (own if isinstance(own, dict) else {}).items():
            end = pattern.removeprefix("^")
            if re.search(r"[^\w.\-]", end):
                raise UserError(f'its {patterns} has the pattern "{shown(pattern)}"; names of layers are read.')
            if path == end or (end == pattern and path.endswith(f".{end}")):
                default = value
                break
        if default is not None and (type(default) not in (int, float) or not math.isfinite(default)):
            raise UserError(f"its {patterns.removesuffix('_pattern')} of {shown(path)} is no number.")
        return default


@torch.no_grad()
def _replace_parts(base: Base, files: list[TensorFile], scale: float) -> None:
    """Whole parts: every tensor of a file takes the place of the base's of that name."""
    for file in files:
        part = file.path.parent.name
        there = dict(getattr(base.pipeline, part).named_parameters()) if getattr(base.pipeline, part, None) else {}
        buffers = dict(getattr(base.pipeline, part).named_buffers()) if there else {}
        for name, tensor in file.tensors().items():
            own = next((n for n in (name, name.removeprefix("text_model."), f"text_model.{name}") if n in there), None)
            if own is None and name.rpartition(".")[2] in {key.rpartition(".")[2] for key in buffers}:
                continue
            if own is None or there[own].shape != tensor.shape:
                raise UserError(f'its tensor "{shown(name, 120)}" is not one of {PARTS[part]} of the base.')
            _move(there[own], tensor.to(there[own].device, torch.float32), scale, name)


# --- words ---


def _add_words(base: Base, file: TensorFile) -> str:
    """A Textual Inversion's vectors, in every text model that it has some for; what prompts read for its word."""
    tensors = file.tensors()
    vectors = {
        part: tensors[name].reshape(-1, tensors[name].shape[-1]) for part, name in vectors_of(file.shapes).items()
    }
    pipeline = base.pipeline
    token = re.sub(r"[^\w-]+", "-", token_of(file) or "").strip("-") or "concept"
    for part, vector in vectors.items():
        tokenizer = getattr(pipeline, part.replace("text_encoder", "tokenizer"), None)
        text_encoder = getattr(pipeline, part, None)
        if tokenizer is None or text_encoder is None:
            raise UserError(f"the base has not {PARTS[part]} that its vectors are for.")
        width = text_encoder.get_input_embeddings().weight.shape[1]
        if vector.shape[1] != width:
            raise UserError(
                f"its vectors have a width of {vector.shape[1]}, and {PARTS[part]} of the base reads {width}."
            )
        try:
            pipeline.load_textual_inversion(vector, token=f"<{token}>", tokenizer=tokenizer, text_encoder=text_encoder)
        except (ValueError, AttributeError) as error:
            raise UserError(f"diffusers does not add its words ({shown(first_line(error), 200)}).") from error
        text_encoder.requires_grad_(False)
    counts = {len(vector) for vector in vectors.values()}
    if len(counts) > 1:
        raise UserError("it has more vectors for one text model than for another.")
    return " ".join([f"<{token}>", *(f"<{token}>_{i}" for i in range(1, counts.pop()))])
