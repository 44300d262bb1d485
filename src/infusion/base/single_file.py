"""A checkpoint in one .safetensors file, as model sites and other programs have them -> a diffusers pipeline."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES, SingleFileComponentError, fetch_diffusers_config
from safetensors import SafetensorError, safe_open
from torch import Tensor

from infusion.errors import UserError, first_line

SUFFIX = ".safetensors"
# A weight of each kind of network that is recognized by it: a UNet, Stable Diffusion 3's and FLUX.1's transformer.
_NETWORKS = {CHECKPOINT_KEY_NAMES["inpainting"], *CHECKPOINT_KEY_NAMES["sd3"], *CHECKPOINT_KEY_NAMES["flux"]}
_GIVE_CONFIG = (
    "Give a folder or hub id of a model of its kind in the diffusers layout, from which the configuration is read "
    "(--base-config, config=)."
)
_GIVE_ALL = "Give a file with all parts, or the whole model as a folder or hub id in the diffusers layout."


def is_single_file(name: str) -> bool:
    """Whether a base of this name is a file, there or missing, and not a folder or a hub id."""
    return Path(name).is_file() or Path(name).suffix in (SUFFIX, ".ckpt")


def load_single_file(path: str, config: str | None, dtype: torch.dtype) -> Any:
    """The pipeline in a checkpoint.

    Args:
        config: a folder or hub id in the diffusers layout that says what the file does not: sizes, tokenizers, the
            noise schedule. By default diffusers' choice, from the Hub or its cache.

    Raises:
        UserError: the file is missing, damaged, or no whole text-to-image model; its configuration cannot be had.
    """
    weights = _shapes(path)
    if not weights.keys() & _NETWORKS:
        raise UserError(
            f"{path} holds no text-to-image model that can be read from one file (Stable Diffusion 1.x, 2.x, XL, 3 and "
            "3.5, FLUX.1); LoRAs, adapters, autoencoders and the like are no bases."
        )
    config = config or fetch_diffusers_config(weights)["pretrained_model_name_or_path"]
    kind = _kind(path, config)
    try:
        pipeline = kind.from_single_file(path, config=config, dtype=dtype)
    except SingleFileComponentError as error:
        raise UserError(f"{path} is no whole model: {first_line(error)} {_GIVE_ALL}") from error
    except NotImplementedError as error:  # torch's, of a weight that was not in the file
        raise UserError(f"{path} is no whole model: some of its weights are missing. {_GIVE_ALL}") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f'{path} could not be read as a model like "{config}": {first_line(error)} {_GIVE_CONFIG}'
        ) from error
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    if any(weight.is_meta for part in parts for weight in part.parameters()):
        raise UserError(f"{path} is no whole model: some of its weights are missing. {_GIVE_ALL}")
    return pipeline


def _shapes(path: str) -> dict[str, Tensor]:
    """The weights of a file by name, without their values."""
    if not Path(path).is_file():
        raise UserError(f"There is no file {path} to load a base model from.")
    if Path(path).suffix != SUFFIX:
        raise UserError(
            f"{path} is no {SUFFIX} file, and a base model in one file is read from no other: .ckpt and .bin files may "
            f"run code when they are opened. Get or save it as {SUFFIX}."
        )
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable {SUFFIX} file ({error}).") from error
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _kind(path: str, config: str) -> Any:
    """The class of pipeline that a folder or hub id in the diffusers layout is of."""
    try:
        name = DiffusionPipeline.load_config(config)["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f'The configuration of {path} was looked for in "{config}", which cannot be read: {first_line(error)} '
            f"{_GIVE_CONFIG}"
        ) from error
    kind = getattr(diffusers, name, None)
    if not hasattr(kind, "from_single_file"):
        raise UserError(f'"{config}" is of the kind {name}, which is not read from one file. {_GIVE_CONFIG}')
    return kind
