"""A file or folder -> what customization it is, found without loading any model."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from infusion.errors import UserError
from infusion.foreign.layer_names import PARTS, part_of
from infusion.foreign.peft_config import PeftConfig
from infusion.foreign.provenance import said_by_file, said_by_folder, said_by_name, tool_by_names
from infusion.foreign.tensor_files import (
    SAFETENSORS,
    TORCH_SUFFIXES,
    TensorFile,
    read_json,
    read_tensor_file,
    shown,
)
from infusion.foreign.textual_inversion import token_of, tool_of_words, vectors_of
from infusion.foreign.weight_changes import kind_of, rank_of, tensor_role
from infusion.hub import model_path

Kind = Literal[
    "infusion adapter",
    "LoRA",
    "LyCORIS",
    "textual inversion",
    "Custom Diffusion",
    "fine-tuned weights",
    "pipeline",
    "single-file checkpoint",
]
_READABLE = (
    "LoRA and LyCORIS files, Textual Inversions, Custom Diffusion weights, fine-tuned pipelines and single-file "
    "checkpoints can be read"
)
_LOOKS_LIKE = {
    "oft_": "OFT, which is not read",
    ".boft": "BOFT, which is not read",
    ".on_input": "IA3, which is not read",
    "ia3_": "IA3, which is not read",
    "control_model": "a ControlNet, which is no customization",
    "controlnet": "a ControlNet, which is no customization",
    "ip_adapter": "an IP-Adapter, which is no customization",
    "image_proj": "an IP-Adapter, which is no customization",
    "motion_modules": "a motion module, which is no customization of images",
    "bundle_emb": "a LoRA with words of its own in it, which is not read",
    "diffusion_model.": "a network alone, without its text models and its autoencoder",
    "decoder.up": "an autoencoder",
}
_MAX_LAYERS = 256
# The names that training scripts give their results, in the order in which a folder is searched.
RESULTS = ("pytorch_lora_weights", "pytorch_custom_diffusion_weights", "adapter_model", "learned_embeds")


@dataclass(frozen=True)
class Found:
    """What a file or folder is. What it says of itself is reported as it says it, in printable letters.

    files: the weight files it is made of; none of a pipeline. tool: what made it, where that is
    known. ranks: how many layers have factors of each rank. alphas: the values given for it. layers: how many layers
    change, by part of the pipeline; none where all do. step: of its training. class_noun, trigger: what prompts say
    for the concept. base: what it was trained on.
    """

    path: Path
    kind: Kind
    files: tuple[Path, ...] = ()
    tool: str | None = None
    file_bytes: int = 0
    num_parameters: int = 0
    ranks: Mapping[int, int] = field(default_factory=dict)
    alphas: tuple[float, ...] = ()
    layers: Mapping[str, int] = field(default_factory=dict)
    step: int | None = None
    class_noun: str | None = None
    trigger: str | None = None
    base: str | None = None

    @property
    def touches(self) -> str:
        """What it changes, in words: "128 layers of the UNet, 72 of the text encoder"."""
        if self.kind == "textual inversion":
            return "words of the text encoder"
        if not self.layers:
            return "everything"
        counts = [f"{count} of {PARTS[part]}" for part, count in self.layers.items()]
        return ", ".join([counts[0].replace(" of ", " layers of ", 1), *counts[1:]])


def inspect(path: str | Path) -> Found:
    """What a file or folder is. Reads headers, names and shapes; no model is loaded, and no code of the file runs.

    Args:
        path: of a file or a folder; or a name on the Hub, as `infusion.hub.model_path` takes it.

    Raises:
        UserError: it is not there, is malformed, or is nothing that can be read; the sentence says what it looks like.
    """
    path = model_path(path)
    if path.is_dir():
        return _inspect_folder(path)
    if not path.exists():
        raise UserError(f"There is no file or folder {path}.")
    return _inspect_file(path)


# --- folders ---


def _inspect_folder(folder: Path) -> Found:
    if (folder / "model_index.json").is_file():
        return _pipeline(folder)
    if parts := _part_files(folder):
        return _fine_tuned(folder, parts)
    if peft := [file for part in PARTS if (file := _peft_file(folder / part))]:
        return _weights(folder, tuple(peft))
    for stem in RESULTS:
        for suffix in (SAFETENSORS, *TORCH_SUFFIXES):
            if (folder / f"{stem}{suffix}").is_file():
                return replace(_inspect_file(folder / f"{stem}{suffix}"), path=folder)
    alone = sorted(folder.glob(f"*{SAFETENSORS}")) or sorted(folder.glob("*.pt"))
    if len(alone) == 1:
        return replace(_inspect_file(alone[0]), path=folder)
    if alone:
        names = ", ".join(shown(file.name) for file in alone[:5])
        raise UserError(f"{folder} holds {len(alone)} weight files ({names}); give one of them.")
    raise UserError(f"{folder} holds nothing that is known here: {_READABLE}.")


def _peft_file(folder: Path) -> Path | None:
    """The weights of a PEFT adapter, where a folder holds one."""
    if not (folder / "adapter_config.json").is_file():
        return None
    files = [folder / f"adapter_model{suffix}" for suffix in (SAFETENSORS, ".bin")]
    return next((file for file in files if file.is_file()), None)


def _part_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Weight files of whole parts of a pipeline, by part: what stands in unet/, or in the folder itself."""
    found = {part: _whole_weights(folder / part) for part in PARTS}
    if not any(found.values()) and folder.name in PARTS:
        found = {folder.name: _whole_weights(folder)}
    return {part: files for part, files in found.items() if files}


def _whole_weights(folder: Path) -> tuple[Path, ...]:
    if not (folder / "config.json").is_file():
        return ()
    for stem in ("diffusion_pytorch_model", "model"):
        whole = folder / f"{stem}{SAFETENSORS}"
        shards = sorted(folder.glob(f"{stem}-*-of-*{SAFETENSORS}"))
        if whole.is_file() or shards:
            return (whole,) if whole.is_file() else tuple(shards)
    return ()


def _fine_tuned(folder: Path, parts: Mapping[str, tuple[Path, ...]]) -> Found:
    files = {part: [read_tensor_file(path) for path in paths] for part, paths in parts.items()}
    names = {part: [name for file in of_part for name in file.shapes] for part, of_part in files.items()}
    layers = {part: len({name.rpartition(".")[0] for name in of_part}) for part, of_part in names.items()}
    return replace(
        _measured(folder, "fine-tuned weights", [file for of_part in files.values() for file in of_part]),
        tool="diffusers",
        layers=layers,
        **said_by_folder(folder),
    )


def _pipeline(folder: Path) -> Found:
    """A whole pipeline, whose JSON leads nowhere but into diffusers, transformers and its own folder."""
    import diffusers

    index = read_json(folder / "model_index.json")
    files: list[TensorFile] = []
    for part, told in index.items():
        if part.startswith("_") or not isinstance(told, list):
            continue
        library = told[0] if told else None
        if library not in (None, "diffusers", "transformers") and not _is_of_diffusers(diffusers, library):
            raise UserError(
                f'{folder} is not loaded: its part "{shown(part)}" is of {shown(library)}, and only parts of diffusers '
                "and transformers are."
            )
        if (folder / part).is_dir() and re.fullmatch(r"\w+", part):
            files += _checked_part(folder / part)
    return replace(_measured(folder, "pipeline", files), files=(), tool="diffusers", **said_by_folder(folder))


def _is_of_diffusers(diffusers: Any, library: Any) -> bool:
    named = isinstance(library, str) and re.fullmatch(r"[a-z]\w*", library)
    return bool(named) and hasattr(diffusers.pipelines, library)


def _checked_part(folder: Path) -> list[TensorFile]:
    """The weight files of a part, once its JSON names none outside its folder and asks for no absurd size."""
    for path in folder.glob("*.index.json"):
        listed = read_json(path).get("weight_map")
        for name in listed.values() if isinstance(listed, dict) else [listed]:
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f'{path} names "{shown(name)}", which is no file beside it.')
    if (folder / "config.json").is_file():
        for key, value in read_json(folder / "config.json").items():
            if "layers" in key and isinstance(value, int) and value > _MAX_LAYERS:
                raise UserError(f"{folder}/config.json asks for too many {shown(key)}; {_MAX_LAYERS} can be.")
    files = [read_tensor_file(path) for path in sorted(folder.glob(f"*{SAFETENSORS}"))]
    if not files and any(folder.glob("*.bin")):
        raise UserError(f"{folder} has its weights as .bin files, which may run code: convert them to .safetensors.")
    return files


# --- files ---


def _inspect_file(path: Path) -> Found:
    file = read_tensor_file(path)
    if "infusion" in file.metadata:
        return _our_own(file)
    words = sibling_words(path) if path.stem == "pytorch_custom_diffusion_weights" else ()
    names = list(file.shapes)
    if all(
        any(name.startswith(prefix) for name in names) for prefix in ("model.diffusion_model.", "first_stage_model.")
    ):
        if path.suffix.lower() != SAFETENSORS:
            raise UserError(f"{path} is a checkpoint that may run code: convert it to .safetensors.")
        return replace(_measured(path, "single-file checkpoint", [file]), **_said(file, path))
    if any(tensor_role(name) for name in names):
        return _weights(path, (path, *words))
    if vectors_of(file.shapes):
        found = replace(_measured(path, "textual inversion", [file]), **_said(file, path))
        return replace(found, trigger=token_of(file), tool=found.tool or tool_of_words(file))
    raise UserError(f"{path} {_looks_like(names)}; {_READABLE}.")


def sibling_words(path: Path) -> tuple[Path, ...]:
    """The files of Custom Diffusion's modifier tokens, which lie beside its weights: <new1>.bin."""
    suffixes = (SAFETENSORS, *TORCH_SUFFIXES)
    files = (file for file in sorted(path.parent.iterdir()) if file.suffix in suffixes and file.is_file())
    return tuple(file for file in files if re.fullmatch(r"<.+>", file.stem))


def _weights(path: Path, paths: Sequence[Path]) -> Found:
    """A customization whose tensors say, layer by layer, how weights change; files of words may be among them."""
    files = [read_tensor_file(path) for path in paths]
    words = [file for file in files if vectors_of(file.shapes)]
    changes = [file for file in files if file not in words]
    alphas: set[float] = set()
    shapes: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {}
    for file in changes:
        for name, shape in file.shapes.items():
            if (found := tensor_role(name)) is None:
                raise UserError(
                    f'{file.path} holds the tensor "{shown(name, 120)}" among those of a customization of weights: '
                    "what it does is unknown, so nothing of the file is used."
                )
            layer, role = found
            shapes.setdefault((_part(file.path, layer), layer), {})[role] = shape
        alphas |= PeftConfig(file).alphas | _alphas(file)
    layers = Counter(part for part, _ in shapes)
    told = _said(changes[0], path)
    if len(words) == 1:
        told["trigger"] = token_of(words[0])
    return replace(
        _measured(path, kind_of({role for roles in shapes.values() for role in roles}), files),
        ranks=_ranks(path, shapes),
        alphas=tuple(sorted(alphas)),
        layers={part: layers[part] for part in PARTS if part in layers},
        **{"tool": tool_by_names(changes[0].shapes)} | told,
    )


def _ranks(path: Path, shapes: Mapping[tuple[str, str], Mapping[str, tuple[int, ...]]]) -> dict[int, int]:
    """How many layers have factors of each rank."""
    found: Counter[int] = Counter()
    for (_, layer), of_layer in shapes.items():
        try:
            rank = rank_of(of_layer)
        except ValueError as error:
            raise UserError(f'{path} is not read: its layer "{shown(layer)}" is {error}.') from error
        found.update([] if rank is None else [rank])
    return dict(sorted(found.items()))


def _alphas(file: TensorFile) -> set[float]:
    """The values of alpha among the tensors."""
    names = [name for name, shape in file.shapes.items() if math.prod(shape) == 1 and name.endswith("alpha")]
    return {float(tensor) for tensor in file.tensors(names).values()}


def _part(path: Path, layer: str) -> str:
    """The part of a pipeline that a layer is of, as far as that is known without one."""
    if path.parent.name in PARTS:
        return path.parent.name
    of_unet = re.search(r"(down|input|mid|middle|up|output)_block", layer)
    return part_of(layer)[0] or ("unet" if of_unet else "transformer")


def _said(file: TensorFile, path: Path) -> dict[str, Any]:
    """What a weight file, its folder and the path that was given say."""
    return said_by_folder(file.path.parent) | said_by_name(path) | said_by_file(file)


def _measured(path: Path, kind: Kind, files: Sequence[TensorFile]) -> Found:
    shapes = [shape for file in files for name, shape in file.shapes.items() if not name.endswith("alpha")]
    return Found(
        path,
        kind,
        tuple(file.path for file in files),
        file_bytes=sum(file.path.stat().st_size for file in files),
        num_parameters=sum(math.prod(shape) for shape in shapes),
    )


def _our_own(file: TensorFile) -> Found:
    try:
        about = json.loads(file.metadata["infusion"])
        name, noun, base = str(about["concept_name"]), str(about["class_noun"]), str(about["base"]["id"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{file.path} is no adapter file of this version: its description is malformed.") from error
    said: dict[str, Any] = {"class_noun": shown(noun), "trigger": f"<{shown(name)}>", "base": shown(base)}
    return replace(_measured(file.path, "infusion adapter", [file]), tool="infusion", **said)


def _looks_like(names: Sequence[str]) -> str:
    for part, what in _LOOKS_LIKE.items():
        if any(part in name for name in names):
            return f"looks like {what}"
    if not names:
        return "holds no tensor"
    return f'holds {len(names)} tensors, "{shown(names[0], 120)}" for one, of nothing that is known here'
