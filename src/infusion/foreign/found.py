"""A file or folder -> what customization it is, told without loading any model."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infusion.errors import UserError
from infusion.foreign.layer_names import part_of
from infusion.foreign.tensor_files import (
    SAFETENSORS,
    TORCH_SUFFIXES,
    TensorFile,
    as_object,
    read_json,
    read_tensor_file,
    shown,
)
from infusion.foreign.weight_changes import kind_of, rank_of, tensor_role

KINDS = (
    "infusion adapter",
    "LoRA",
    "LyCORIS",
    "textual inversion",
    "Custom Diffusion",
    "fine-tuned weights",
    "pipeline",
    "single-file checkpoint",
)
PARTS = {
    "unet": "the UNet",
    "transformer": "the transformer",
    "text_encoder": "the text encoder",
    "text_encoder_2": "the second text encoder",
    "text_encoder_3": "the third text encoder",
}
MAX_VECTORS = 1024  # of a Textual Inversion; prompts hold fewer
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
    "motion_modules": "a motion module, which is no customization of pictures",
    "bundle_emb": "a LoRA with words of its own in it, which is not read",
    "diffusion_model.": "a network alone, without its text models and its autoencoder",
    "decoder.up": "an autoencoder",
}
# The names that training scripts give their results, in the order in which a folder is searched.
_MAX_LAYERS = 256
_RESULTS = ("pytorch_lora_weights", "pytorch_custom_diffusion_weights", "adapter_model", "learned_embeds")


@dataclass(frozen=True)
class Found:
    """What a file or folder is. What it says of itself is told as it says it, in printable letters.

    kind: one of `KINDS`. files: the weight files it is made of; none of a pipeline. tool: what made it, where that can
    be told. ranks: how many layers have factors of each rank. layers: how many layers change, by part of the pipeline; none where all do. step:
    of its training; what is called an epoch in a file's name stands for it where nothing else is said. class_noun,
    trigger: what prompts say for the concept. base: what it was trained on.
    """

    path: Path
    kind: str
    files: tuple[Path, ...] = ()
    tool: str | None = None
    file_bytes: int = 0
    num_parameters: int = 0
    ranks: Mapping[int, int] = field(default_factory=dict)
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

    Raises:
        UserError: it is not there, is malformed, or is nothing that can be read; the sentence says what it looks like.
    """
    path = Path(path)
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
    for stem in _RESULTS:
        for suffix in (SAFETENSORS, *TORCH_SUFFIXES):
            if (folder / f"{stem}{suffix}").is_file():
                return replace(_inspect_file(folder / f"{stem}{suffix}"), path=folder)
    alone = sorted(file for file in folder.glob(f"*{SAFETENSORS}") if file.is_file())
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
    paths = tuple(path for of_part in parts.values() for path in of_part)
    return replace(
        _measured(folder, "fine-tuned weights", [file for of_part in files.values() for file in of_part]),
        files=paths,
        tool="diffusers",
        layers=layers,
        **_told_by_card(folder),
    )


def _pipeline(folder: Path) -> Found:
    """A whole pipeline, whose descriptions of itself lead nowhere but into diffusers, transformers and its own folder."""
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
    return replace(_measured(folder, "pipeline", files), tool="diffusers", **_told_by_card(folder))


def _is_of_diffusers(diffusers: Any, library: Any) -> bool:
    return isinstance(library, str) and re.fullmatch(r"[a-z]\w*", library) and hasattr(diffusers.pipelines, library)


def _checked_part(folder: Path) -> list[TensorFile]:
    """The weight files of a part, once its JSON names none outside its folder and asks for no absurd size."""
    for path in folder.glob("*.json"):
        if path.name.endswith(".index.json"):
            names = read_json(path).get("weight_map")
            strange = (
                [name for name in names.values() if Path(str(name)).name != name] if isinstance(names, dict) else [0]
            )
            if strange:
                raise UserError(f'{path} names "{shown(strange[0])}", which is no file beside it.')
        elif path.name == "config.json":
            for key, value in read_json(path).items():
                if isinstance(value, int) and "layers" in key and value > _MAX_LAYERS:
                    raise UserError(f"{path} asks for {shown(value, 20)} of {shown(key)}; {_MAX_LAYERS} can be.")
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
        return replace(_measured(path, "single-file checkpoint", [file]), files=(path,), **_told(file))
    if any(tensor_role(name) for name in names):
        return _weights(path, (path, *words))
    if vectors_of(file.shapes):
        found = replace(_measured(path, "textual inversion", [file]), files=(path,), **_told(file))
        return replace(found, trigger=token_of(file), tool=found.tool or _tool_of_words(file))
    raise UserError(f"{path} {_looks_like(names)}; {_READABLE}.")


def sibling_words(path: Path) -> tuple[Path, ...]:
    """The files of Custom Diffusion's modifier tokens, which lie beside its weights: <new1>.bin."""
    suffixes = (SAFETENSORS, *TORCH_SUFFIXES)
    files = (file for file in sorted(path.parent.iterdir()) if file.suffix in suffixes and file.is_file())
    return tuple(file for file in files if re.fullmatch(r"<.+>", file.stem))


def _weights(path: Path, files: tuple[Path, ...]) -> Found:
    """A customization whose tensors say, layer by layer, how weights change."""
    read = [read_tensor_file(file) for file in files]
    by_layer: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {}
    roles: set[str] = set()
    for file in read:
        if vectors_of(file.shapes):
            continue
        for name, shape in file.shapes.items():
            role = tensor_role(name)
            if role is None:
                raise UserError(
                    f'{file.path} holds the tensor "{shown(name, 120)}" among those of a customization of weights: '
                    "what it does cannot be told, so nothing of the file is used."
                )
            roles.add(role[1])
            by_layer.setdefault((_part(file.path, role[0]), role[0]), {})[role[1]] = shape
    ranks: Counter[int] = Counter()
    layers: Counter[str] = Counter()
    for (part, layer), shapes in by_layer.items():
        try:
            rank = rank_of(shapes)
        except ValueError as error:
            raise UserError(f'{path} is not read: its layer "{shown(layer)}" is {error}.') from error
        layers[part] += 1
        ranks.update([] if rank is None else [rank])
    kind = kind_of(sorted(roles))
    told = _told(read[0]) | {key: value for key, value in _told_by_card(read[0].path.parent).items() if value}
    found = replace(_measured(path, kind, read), files=files, ranks=dict(ranks), layers=dict(layers), **told)
    words = [file for file in read if vectors_of(file.shapes)]
    trigger = token_of(words[0]) if len(words) == 1 else found.trigger
    return replace(found, trigger=trigger, tool=found.tool or _tool_of_names(read[0].shapes, kind))


def _part(path: Path, layer: str) -> str:
    if path.parent.name in PARTS:
        return path.parent.name
    part = part_of(layer)[0]
    return part or ("unet" if re.search(r"(down|input|mid|middle|up|output)_blocks?|unet", layer) else "transformer")


def _measured(path: Path, kind: str, files: Sequence[TensorFile]) -> Found:
    shapes = [shape for file in files for name, shape in file.shapes.items() if not name.endswith("alpha")]
    return Found(
        path,
        kind,
        file_bytes=sum(file.path.stat().st_size for file in files),
        num_parameters=sum(math.prod(shape) for shape in shapes),
        step=_step_in_name(path),
    )


def _our_own(file: TensorFile) -> Found:
    try:
        about = json.loads(file.metadata["infusion"])
        name, noun, base = str(about["concept_name"]), str(about["class_noun"]), str(about["base"]["id"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{file.path} is no adapter file of this version: its description is malformed.") from error
    said = {"class_noun": shown(noun), "trigger": f"<{shown(name)}>", "base": shown(base)}
    return replace(_measured(file.path, "infusion adapter", [file]), files=(file.path,), tool="infusion", **said)


# --- Textual Inversion ---


def vectors_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The tensors of a Textual Inversion, by the text model that reads them; none where it is something else."""
    fits = all(
        len(s) in (1, 2) and 0 < s[-1] <= 2**16 and (len(s) == 1 or 0 < s[0] <= MAX_VECTORS) for s in shapes.values()
    )
    if not shapes or not fits:
        return {}
    if shapes.keys() <= {"clip_l", "clip_g"}:
        return {("text_encoder" if name == "clip_l" else "text_encoder_2"): name for name in shapes}
    if "string_to_param.*" in shapes or len(shapes) == 1:
        name = "string_to_param.*" if "string_to_param.*" in shapes else next(iter(shapes))
        return {} if tensor_role(name) or name.endswith((".weight", ".bias")) else {"text_encoder": name}
    return {}


def token_of(file: TensorFile) -> str | None:
    """The word that prompts say for a Textual Inversion: its tensor's name, what the file says, or the file's name."""
    names = set(file.shapes) - {"", "emb_params", "clip_l", "clip_g", "string_to_param.*"}
    said = next(iter(names), None) or file.metadata.get("name") or re.sub(_STEP, "", file.path.stem)
    return shown(said) or None


def _tool_of_words(file: TensorFile) -> str | None:
    if "string_to_param.*" in file.shapes or "emb_params" in file.shapes:
        return "A1111"
    return "diffusers" if re.fullmatch(r"<.+>", next(iter(file.shapes))) else None


# --- what a file says of itself ---

_STEP = re.compile(r"(checkpoint-|-steps?-?|[-_](?=\d{6,9}$))(?P<step>\d{1,9})$")
_PHOTO_OF = re.compile(r"^(\w+ ){0,4}?(photo|picture|image|portrait|painting|drawing|rendering) of ", re.IGNORECASE)


def _step_in_name(path: Path) -> int | None:
    found = _STEP.search(path.stem if path.is_file() else path.name)
    return int(found["step"]) if found else None


def _told(file: TensorFile) -> dict[str, Any]:
    """Tool, step, trigger, class noun and base, as far as the metadata say."""
    said = file.metadata
    told: dict[str, Any] = _words_of(_kohya_words(said) or "")
    if not told and said.get("modelspec.trigger_phrase"):
        told["trigger"] = shown(said["modelspec.trigger_phrase"])
    base = next((said[key] for key in _BASE_KEYS if said.get(key)), None)
    step = next((said[key] for key in ("ss_steps", "step") if said.get(key)), None)
    step = step or as_object(said.get("training_info")).get("step")
    if base:
        told["base"] = shown(base)
    if str(step).isdecimal() and len(str(step)) < 10:
        told["step"] = int(step)
    if tool := _tool_of_metadata(said):
        told["tool"] = tool
    return told


_BASE_KEYS = ("ss_sd_model_name", "base_model", "sd_checkpoint_name", "ss_base_model_version", "modelspec.architecture")


def _tool_of_metadata(said: Mapping[str, str]) -> str | None:
    if as_object(said.get("software")).get("name"):
        return shown(as_object(said["software"])["name"])
    if any(key.startswith("ot_") for key in said):
        return "OneTrainer"
    if any(key.startswith("ss_") for key in said):
        return "sd-scripts"
    if "lora_adapter_metadata" in said:
        return "diffusers"
    return "A1111" if "sd_checkpoint_name" in said else None


def _tool_of_names(names: Iterable[str], kind: str) -> str | None:
    name = next(iter(names))
    if kind == "Custom Diffusion":
        return "diffusers"
    for beginning, tool in {
        "lora_": "sd-scripts",
        "lycoris_": "LyCORIS",
        "diffusion_model.": "ComfyUI",
        "base_model.": "PEFT",
        "unet.": "diffusers",
        "transformer.": "diffusers",
        "text_encoder": "diffusers",
    }.items():
        if name.startswith(beginning):
            return tool
    return "PEFT" if ".lora_A." in name or ".lora_B." in name else None


def _kohya_words(said: Mapping[str, str]) -> str | None:
    """The words in the name of sd-scripts' picture folder, "10_sks cat", where there is one."""
    words = {
        re.sub(r"^\d+_", "", folder) for folder in as_object(said.get("ss_tag_frequency")) if re.match(r"\d+_", folder)
    }
    return words.pop() if len(words) == 1 else None


def _told_by_card(folder: Path) -> dict[str, Any]:
    """What the head of a folder's README.md and its adapter_config.json say."""
    told: dict[str, Any] = {}
    if (folder / "README.md").is_file():
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(2**16).splitlines()
        said = {key: value.strip(" '\"") for key, _, value in (line.partition(":") for line in lines)}
        prompt = shown(said.get("instance_prompt", ""), 200)
        told = _words_of(_PHOTO_OF.sub("", prompt)) if prompt != "null" else {}
        if said.get("base_model"):
            told["base"] = shown(said["base_model"])
    config = folder / "adapter_config.json"
    if config.is_file() and read_json(config).get("base_model_name_or_path"):
        told["base"] = shown(read_json(config)["base_model_name_or_path"])
    return told


def _words_of(phrase: str) -> dict[str, Any]:
    """Trigger and class noun of a phrase such as "a sks cat"; none of a sentence."""
    words = re.sub(r"^(an?|the) ", "", shown(phrase), flags=re.IGNORECASE).split()
    if not words or len(words) > 4:
        return {}
    return {"trigger": " ".join(words)} | ({"class_noun": " ".join(words[1:])} if len(words) > 1 else {})


def _looks_like(names: Sequence[str]) -> str:
    for part, what in _LOOKS_LIKE.items():
        if any(part in name for name in names):
            return f"looks like {what}"
    if not names:
        return "holds no tensor"
    return f'holds {len(names)} tensors, "{shown(names[0], 120)}" for one, of nothing that is known here'


# --- the checkpoints of a run ---


def checkpoints(folder: str | Path) -> list[Found]:
    """The checkpoints of one training run, in the order of their steps; the final result, if there is one, last.

    Read are folders checkpoint-500/, and files run-000010.safetensors, run-step00000500.safetensors,
    run_000000500.safetensors, learned_embeds-steps-500.safetensors.

    Raises:
        UserError: there are none, they are of several runs, or one is unreadable.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of checkpoints.")
    inside = sorted(folder.iterdir())
    steps = [path for path in inside if path.is_dir() and re.fullmatch(r"checkpoint-\d{1,9}", path.name)]
    files = [path for path in inside if path.is_file() and path.suffix in (SAFETENSORS, *TORCH_SUFFIXES)]
    files = [path for path in files if not re.fullmatch(r"<.+>", path.stem)]
    if not steps:
        steps = files
        runs = sorted({_STEP.sub("", path.stem) for path in files})
        if len(runs) > 1:
            raise UserError(
                f"{folder} holds files of several runs ({', '.join(map(shown, runs[:5]))}); give one a folder."
            )
    else:
        steps = steps + [path for path in files if path.stem in _RESULTS][:1]
    if not steps:
        raise UserError(f"{folder} holds no checkpoints: no folders checkpoint-500/, and no weight files.")
    found = [inspect(path) for path in steps]
    return sorted(found, key=lambda one: math.inf if one.step is None else one.step)
