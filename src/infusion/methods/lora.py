"""LoRA on a DreamBooth prompt: low-rank additions to all attention projections, by PEFT (arXiv 2106.09685)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from infusion.base.customization import WrappedModules
from infusion.base.edits import bare
from infusion.base.model import Base
from infusion.errors import UserError, first_line
from infusion.methods.adapter import Adapter, load_tensors
from infusion.methods.method import RareTokenMethod
from infusion.settings import setting

if TYPE_CHECKING:
    from infusion.concepts.concept import Concept

_PREFIX = "unet."
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_MATRICES = ("lora_A", "lora_B")


@dataclass(frozen=True)
class LoRA(RareTokenMethod):
    """W + B A on q, k, v and out of every attention, trained on "sks cat".

    Its files are PEFT's: `pipe.load_lora_weights` reads them, and "sks cat" is then the prompt's word for the concept.

    Defaults: diffusers' training script.
    """

    name: ClassVar[str] = "lora"
    paper: ClassVar[str] = "arXiv 2106.09685"
    diffusers_loader: ClassVar[str | None] = "load_lora_weights"

    learning_rate: float = setting(1e-4, help="AdamW's learning rate.", above=0)
    rank: int = setting(4, help="Rank of the additions; they are not scaled (alpha = rank).", minimum=1, maximum=1024)

    def adapter(self, base: Base, concept: "Concept") -> "LoRAAdapter":
        return LoRAAdapter(self, concept.name, concept.class_noun, base)

    def num_parameters(self, base: Base, class_noun: str) -> int:
        """Rank times the sum of inputs and outputs of the projections: 797,184 on Stable Diffusion 1.5 at rank 4."""
        layers = _projections(base.network).values()
        return sum(self.rank * (layer.in_features + layer.out_features) for layer in layers)

    def restored(self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str) -> "LoRAAdapter":
        return load_tensors(LoRAAdapter(self, concept_name, class_noun, base), tensors, base)

    @classmethod
    def merge(cls, base: Base, adapters: Sequence[Adapter]) -> Sequence[Adapter]:
        """The sum of the additions; as no token of a prompt is theirs, they are told apart by their words alone."""
        words = [adapter.words for adapter in adapters]
        for adapter in adapters:
            if words.count(adapter.words) > 1:
                raise UserError(
                    f'Several concepts are read as "{adapter.words}", which LoRAs cannot tell apart: train one of them '
                    "with another rare_token."
                )
        return adapters


class LoRAAdapter(Adapter):
    """PEFT's layers around the base's projections. Its tensors are the matrices A and B, under diffusers' names."""

    method: LoRA
    layers: dict[str, Any]

    def __init__(self, method: LoRA, concept_name: str, class_noun: str, base: Base) -> None:
        super().__init__(method, concept_name, class_noun)
        base.as_stable_diffusion("lora")
        # In a dictionary they are not registered: they hold the base's own weights, which are no part of the adapter.
        self.layers = _peft_layers(_projections(base.network), method.rank)
        for path, layer in self.layers.items():
            for matrix in _MATRICES:
                self.register_parameter(f"{_PREFIX}{path}.{matrix}.weight", getattr(layer, matrix)["default"].weight)

    def check_fits(self, base: Base) -> None:
        there = {path: (layer.in_features, layer.out_features) for path, layer in _projections(base.network).items()}
        if {path: (layer.in_features, layer.out_features) for path, layer in self.layers.items()} != there:
            raise UserError(
                f'The LoRA of <{self.concept_name}> adds to other projections than those of "{base.id}": it is for '
                "another architecture."
            )

    def edits(self, base: Base) -> list[WrappedModules]:
        return [WrappedModules({path: partial(_around, layer) for path, layer in self.layers.items()})]


def _around(layer: Any, module: nn.Module) -> nn.Module:
    layer.base_layer = module
    return layer


def _projections(network: nn.Module) -> dict[str, nn.Linear]:
    return {
        path: module
        for path, module in bare(network).named_modules()
        if isinstance(module, nn.Linear) and path.endswith(tuple(f".{name}" for name in _PROJECTIONS))
    }


def _peft_layers(projections: Mapping[str, nn.Linear], rank: int) -> dict[str, Any]:
    """PEFT's layer for every projection, around it; the network that the projections are of is left as it was."""
    from peft import LoraConfig, inject_adapter_in_model

    shell = nn.ModuleDict({path.replace(".", "/"): layer for path, layer in projections.items()})
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(shell))
    trains = [(weight, weight.requires_grad) for weight in shell.parameters()]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        inject_adapter_in_model(config, shell)
    for weight, flag in trains:
        weight.requires_grad_(flag)
    layers: dict[str, Any] = {path: shell[path.replace(".", "/")] for path in projections}
    for layer in layers.values():
        for matrix in _MATRICES:
            getattr(layer, matrix).float()
    return layers


def read_lora(path: str | Path, base: Base, concept_name: str, class_noun: str, rare_token: str = "sks") -> LoRAAdapter:
    """A LoRA of the UNet's attention projections, made by diffusers' scripts or converted by its loader.

    Raises:
        UserError: the file is no .safetensors file, cannot be read, or adds to anything else than all of these
            projections.
    """
    tensors, alphas = _peft_tensors(Path(path))
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise UserError(f"{path} has layers of the ranks {sorted(ranks)}; LoRAs of one rank can be read.")
    rank = ranks.pop()
    for name in tensors:
        if name.endswith(".lora_B.weight"):  # W + (alpha / rank) B A
            tensors[name] = tensors[name] * (alphas.get(name.replace(".lora_B.", ".lora_A."), rank) / rank)
    return LoRA(rank=rank, rare_token=rare_token).restored(base, tensors, concept_name, class_noun)


def _peft_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A LoRA file's matrices by PEFT's names, and alpha by the names of the matrices A that have one."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    if path.suffix != ".safetensors":  # diffusers would unpickle it, and a pickle may run any code
        raise UserError(f"{path} cannot be read as a LoRA: only .safetensors files are opened.")
    options = {"use_safetensors": True, "local_files_only": True, "return_lora_metadata": True}
    try:
        found = StableDiffusionPipeline.lora_state_dict(str(path.parent), weight_name=path.name, **options)
        tensors, alphas, config = found[0], found[1] or {}, found[2] or {}
        tensors = convert_unet_state_dict_to_peft({name: tensor.float() for name, tensor in tensors.items()})
        alphas = convert_unet_state_dict_to_peft({name.removesuffix(".alpha"): alpha for name, alpha in alphas.items()})
    except Exception as error:  # whatever diffusers' converters stumble over
        raise UserError(f"{path} cannot be read as a LoRA: {first_line(error)}") from error
    unread = [key for key in ("alpha_pattern", "use_rslora", "use_dora") if config.get(f"unet.{key}")]
    if unread:
        raise UserError(f"{path} was made with PEFT's {', '.join(unread)}; plain LoRAs of one alpha can be read.")
    if "unet.lora_alpha" in config:
        alphas = {name: config["unet.lora_alpha"] for name in tensors if name.endswith(".lora_A.weight")}
    return tensors, {name: float(alpha) for name, alpha in alphas.items()}
