"""Adapter <-> one small .safetensors file that explains itself."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from infusion.base import Base, same_base
from infusion.base.noise_schedule import FLOW
from infusion.concepts.concept import checked_class_noun, checked_name
from infusion.errors import UserError
from infusion.files import whole_file
from infusion.hub import adapter_path
from infusion.methods import METHODS
from infusion.methods.adapter import Adapter
from infusion.settings import from_mapping
from infusion.versions import versions

_SCHEMA = 1
_PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample", FLOW: "flow"}
_DESCRIPTION = {
    "method": str,
    "paper": str,
    "settings": dict,
    "concept_name": str,
    "class_noun": str,
    "base": dict,
    "training": dict,
    "versions": dict,
    "created": str,
}


def save_adapter(adapter: Adapter, path: str | Path, base: Base, training: Mapping[str, Any] | None = None) -> int:
    """Write an adapter; returns the file's size in bytes.

    Args:
        base: what it was trained on; its id and fingerprint go into the file.
        training: settings and figures of its training worth keeping, as JSON values.

    Raises:
        UserError: the file cannot be written. Nothing is left half-written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state_dict().items()}
    trigger_phrase = adapter.diffusers_words if adapter.method.diffusers_loader else f"<{adapter.concept_name}>"
    created = datetime.now(UTC).isoformat(timespec="seconds")
    about = {
        "schema": _SCHEMA,
        "method": adapter.method.name,
        "paper": adapter.method.paper,
        "settings": asdict(adapter.method),
        "num_parameters": adapter.num_parameters,
        "concept_name": adapter.concept_name,
        "class_noun": adapter.class_noun,
        "base": {"id": base.id, "family": base.family.architecture, "fingerprint": base.fingerprint()},
        "training": dict(training or {}),
        "versions": versions(),
        "created": created,
    }
    metadata = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{base.family.architecture}/{adapter.method.name}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": adapter.concept_name,
        "modelspec.date": created,
        "modelspec.trigger_phrase": trigger_phrase,
        "modelspec.prediction_type": _PREDICTION_TYPES[base.noise_schedule.config.prediction_type],
        "infusion": json.dumps(about, sort_keys=True),
    }
    metadata["infusion.sha256"] = _digest(tensors, metadata)
    content = save(tensors, metadata=metadata)
    with whole_file(Path(path)) as temporary:
        temporary.write_bytes(content)
    return len(content)


def read_adapter_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What an adapter file says of itself, and its tensors by name.

    Args:
        path: a file; or `user/repo`, `user/repo@revision`, `user/repo/file.safetensors` on the Hub.

    Raises:
        UserError: it cannot be found or read, was made by something else, or has been changed since it was written.
    """
    given, path = path, adapter_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise UserError(f"There is no adapter file {given}.") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{given} is not a readable .safetensors file ({error}).") from error
    if "infusion" not in metadata:
        raise UserError(f"{given} is a .safetensors file of another tool; adapter files are made by `infusion train`.")
    if metadata.pop("infusion.sha256", None) != _digest(tensors, metadata):
        raise UserError(f"{given} is damaged: its contents do not match the checksum it carries; get it anew.")
    return _checked(metadata["infusion"], tensors, given), tensors


def _checked(text: str, tensors: Mapping[str, Tensor], given: str | Path) -> dict[str, Any]:
    """What the file says of itself, once it is sure to say it as this version would."""
    strange = UserError(f"{given} is no adapter file of this version: its description or its tensors are malformed.")
    try:
        about = json.loads(text)
        schema = int(about["schema"])
    except (ValueError, TypeError, KeyError) as error:
        raise strange from error
    if schema > _SCHEMA:
        raise UserError(f"{given} was written by a newer version (schema {schema}); update this package.")
    complete = all(isinstance(about.get(key), kind) for key, kind in _DESCRIPTION.items())
    if not complete or not all(isinstance(about["base"].get(key), str) for key in ("id", "fingerprint")):
        raise strange
    if not tensors or not all(t.is_floating_point() and t.isfinite().all() for t in tensors.values()):
        raise strange
    checked_name(about["concept_name"])
    checked_class_noun(about["class_noun"])
    return about


def load_adapter(path: str | Path, base: Base, any_base: bool = False) -> Adapter:
    """Read an adapter for a base.

    Args:
        path: a file, or a name on the Hub, as `read_adapter_file` takes them.
        any_base: also accept a base other than the one it was trained on, as long as the layers agree.

    Raises:
        UserError: the file is unusable (`read_adapter_file`), or is for another base.
    """
    about, tensors = read_adapter_file(path)
    return restored(about, tensors, base, any_base, path)


def restored(
    about: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Base, any_base: bool = False, path: str | Path = ""
) -> Adapter:
    """The adapter of what `read_adapter_file` read of `path`, for a base; as `load_adapter`."""
    if about["method"] not in METHODS:
        raise UserError(f'{path} was made by the method "{about["method"]}"; known are: {", ".join(METHODS)}.')
    method = from_mapping(METHODS[about["method"]], about["settings"])
    made_for, family = about["base"], base.family.architecture
    if made_for.get("family", family) != family:
        raise UserError(
            f'{path} was trained on a model of the family {made_for["family"]}, but the base "{base.id}" is of '
            f"{family}; load a base of the first."
        )
    if not any_base and not same_base(made_for["fingerprint"], base.fingerprint()):
        raise UserError(
            f'{path} was trained on the base "{made_for["id"]}", but the base loaded is "{base.id}", whose weights '
            f"differ; load that base, or allow any base (--any-base, any_base=True) for a fine-tune of it."
        )
    return method.restored(base, tensors, about["concept_name"], about["class_noun"])


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
