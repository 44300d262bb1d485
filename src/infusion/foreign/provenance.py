"""What a weight file and the notes beside it say of themselves -> its tool, step, trigger, class noun and base.

Everything is told as it is said, cut to one printable line. The answers are dictionaries of fields of `Found`, without
those that nothing is said of.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infusion.foreign.tensor_files import TensorFile, as_object, read_json, shown

_README_BYTES = 2**16
_MAX_WORDS = 4  # of a trigger; a longer phrase is a sentence
STEP = re.compile(r"(checkpoint-|-steps?-?|[-_](?=\d{6,9}$))(?P<step>\d{1,9})$")
_PHOTO_OF = re.compile(r"^(\w+ ){0,4}?(photo|image|image|portrait|painting|drawing|rendering) of ", re.IGNORECASE)
_BASE_KEYS = (
    "ss_sd_model_name",
    "base_model",
    "sd_checkpoint_name",
    "ss_base_model_version",
    "modelspec.architecture",
)
_TOOL_BY_KEY = {
    "ot_": "OneTrainer",
    "ss_": "sd-scripts",
    "lora_adapter_metadata": "diffusers",
    "sd_checkpoint": "A1111",
}
_TOOL_BY_NAME = {
    "lora_": "sd-scripts",
    "lycoris_": "LyCORIS",
    "diffusion_model.": "ComfyUI",
    "base_model.": "PEFT",
    "unet.": "diffusers",
    "transformer.": "diffusers",
    "text_encoder": "diffusers",
}


def said_by_file(file: TensorFile) -> dict[str, Any]:
    """What the metadata say, and the file's name of its step."""
    said = file.metadata
    told = said_by_name(file.path) | _words(_image_folder(said) or "")
    if "trigger" not in told and said.get("modelspec.trigger_phrase"):
        told["trigger"] = shown(said["modelspec.trigger_phrase"])
    if base := next((said[key] for key in _BASE_KEYS if said.get(key)), None):
        told["base"] = shown(base)
    steps = [said.get("ss_steps"), said.get("step"), as_object(said.get("training_info")).get("step")]
    if step := next((str(step) for step in steps if re.fullmatch(r"[0-9]{1,9}", str(step))), None):
        told["step"] = int(step)
    if tool := _tool(said):
        told["tool"] = tool
    return told


def said_by_name(path: Path) -> dict[str, Any]:
    """The step in a name such as checkpoint-500 or run_000000500.safetensors (of sd-scripts' run-000010, the epoch)."""
    found = STEP.search(path.name if path.is_dir() else path.stem)
    return {"step": int(found["step"])} if found else {}


def said_by_folder(folder: Path) -> dict[str, Any]:
    """What the head of a folder's README.md and its adapter_config.json say."""
    told = said_by_name(folder)
    if (folder / "README.md").is_file():
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            lines = [line.partition(":") for line in file.read(_README_BYTES).splitlines()]
        said = {
            key: shown(value.strip(" '\""), 200) for key, _, value in lines if value.strip(" '\"") not in ("", "null")
        }
        told |= _words(_PHOTO_OF.sub("", said.get("instance_prompt", "")))
        if "base_model" in said:
            told["base"] = shown(said["base_model"])
    config = folder / "adapter_config.json"
    if config.is_file() and (base := read_json(config).get("base_model_name_or_path")):
        told["base"] = shown(base)
    return told


def tool_by_names(names: Iterable[str]) -> str | None:
    """The tool that names tensors so."""
    first = next(iter(names))
    known = next((tool for beginning, tool in _TOOL_BY_NAME.items() if first.startswith(beginning)), None)
    return known or ("PEFT" if ".lora_A." in first or ".lora_B." in first else None)


def _tool(said: Mapping[str, str]) -> str | None:
    if software := as_object(said.get("software")).get("name"):  # ai-toolkit's way of saying it
        return shown(software)
    return next((tool for key, tool in _TOOL_BY_KEY.items() if any(name.startswith(key) for name in said)), None)


def _image_folder(said: Mapping[str, str]) -> str | None:
    """The words in the name of sd-scripts' folder of images, "10_sks cat", where there is one."""
    folders = [re.fullmatch(r"\d+_(.+)", folder) for folder in as_object(said.get("ss_tag_frequency"))]
    words = {folder[1] for folder in folders if folder}
    return words.pop() if len(words) == 1 else None


def _words(phrase: str) -> dict[str, Any]:
    """Trigger and class noun of a phrase such as "a sks cat"; none of a sentence."""
    words = re.sub(r"^(an?|the) ", "", shown(phrase), flags=re.IGNORECASE).split()
    if not 0 < len(words) <= _MAX_WORDS:
        return {}
    return {"trigger": " ".join(words)} | ({"class_noun": " ".join(words[1:])} if len(words) > 1 else {})
