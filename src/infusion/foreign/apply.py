"""What a file or folder is, and a base -> the base as the customization makes it: another model, with weights alone."""

import math
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infusion.base import Base, load_base
from infusion.base.model import is_single_file
from infusion.errors import UserError, first_line
from infusion.foreign.identify import Found
from infusion.foreign.layer_names import PARTS, LayerNames
from infusion.foreign.peft_config import PeftConfig
from infusion.foreign.tensor_files import TensorFile, read_tensor_file, shown
from infusion.foreign.textual_inversion import add_words, vectors_of
from infusion.foreign.weight_changes import changed_weights, layer_changes
from infusion.toybox import FOUNDATION_DIR, TOYBOX

ALL_OR_NOTHING = ("textual inversion", "pipeline", "single-file checkpoint")
"""Kinds that are there or not: they have no strength in between."""


def customized(
    found: Found,
    base_name_or_path: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    config: str | Path | None = None,
) -> tuple[Base, str | None]:
    """A model in which a customization is in effect, and what its prompts say for the trigger.

    Its weights W become W + scale (W' - W), where W' are the customization's; so every kind has a strength, and at 0
    the base is left as it is, to the bit. Nothing of the file is left out in silence: what cannot be read is refused.

    Args:
        found: what `inspect` said.
        base_name_or_path: what it is applied to, as `load_base` takes it; of no part for a whole pipeline.
        scale: how strongly; a Textual Inversion and a whole pipeline are there or not, 1 or 0.
        config: of the base, where that is a single file. A customized single file has the base's configuration.

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
    if scale not in (0, 1) and found.kind in ALL_OR_NOTHING:
        raise UserError(f"A {found.kind} is there or not, so it has no strength of {scale:g}: give 1 or 0.")
    if scale and found.kind == "pipeline":
        return _whole_model(found.path, device, dtype), found.trigger
    if scale and found.kind == "single-file checkpoint":
        return _whole_model(found.path, device, dtype, config or _configuration(base_name_or_path)), found.trigger
    base = load_base(base_name_or_path, device, dtype, config)
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
        added = [add_words(base, file) for file in words]
    except UserError as error:
        raise UserError(f"{found.path} cannot be applied to {base_name_or_path}: {error}") from error
    return base, added[0] if len(added) == 1 else found.trigger


def _configuration(base: str | Path) -> str | Path | None:
    """Where the configuration of a base is; None of a single file, which has none."""
    return FOUNDATION_DIR if base == TOYBOX else None if is_single_file(str(base)) else base


def _whole_model(
    path: Path, device: str | torch.device | None, dtype: torch.dtype, config: str | Path | None = None
) -> Base:
    try:
        return load_base(path, device, dtype, config)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a library may stumble over a foreign file in any way
        raise UserError(f"{path} cannot be loaded as a model: {shown(first_line(error), 200)}.") from error


# --- weights ---


@torch.no_grad()
def _change_layers(base: Base, files: list[TensorFile], scale: float) -> None:
    """Every layer that a file has tensors for, changed in place."""
    names = LayerNames(base.pipeline, base.family.network)
    for file in files:
        folder = file.path.parent.name  # PEFT's scripts have one for each part
        within = f"{folder}." if folder in PARTS else ""
        config = PeftConfig(file)
        for layer, change in layer_changes(_in_diffusers_names(base, file, names)).items():
            place = names.find(layer) or names.find(within + layer.removeprefix("base_model.model."))
            if place is None:
                raise UserError(f'the base has no layer "{shown(layer, 120)}"; it was made for another model.')
            change.scale = config.scale(*place, change.rank)
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


@torch.no_grad()
def _replace_parts(base: Base, files: list[TensorFile], scale: float) -> None:
    """Whole parts: the tensors of their files take the places of all of the base's."""
    for part in {file.path.parent.name: None for file in files}:
        module = getattr(base.pipeline, part, None)
        there = {} if module is None else dict(module.named_parameters())
        given = {name: t for file in files if file.path.parent.name == part for name, t in file.tensors().items()}
        if there and not there.keys() & given.keys():  # before transformers 5, CLIP's layers stood in text_model
            given = {name.removeprefix("text_model."): tensor for name, tensor in given.items()}
        given = {name: tensor for name, tensor in given.items() if not name.endswith("position_ids")}
        if odd := sorted(there.keys() ^ given.keys()):
            whose = "the base" if odd[0] in there else "the file"
            raise UserError(f'of {PARTS[part]}, only {whose} has "{shown(odd[0], 120)}": it is another model.')
        for name, tensor in given.items():
            if tensor.shape != there[name].shape:
                shapes = f"{list(tensor.shape)}, and {list(there[name].shape)} in the base"
                raise UserError(f'its "{shown(name, 120)}" has the shape {shapes}: it is another model.')
            _move(there[name], tensor.to(there[name].device, torch.float32), scale, name)
