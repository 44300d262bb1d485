"""A layer's name in another tool's file -> the part of the pipeline and the module it means."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

PARTS = {
    "unet": "the UNet",
    "transformer": "the transformer",
    "text_encoder": "the text encoder",
    "text_encoder_2": "the second text encoder",
    "text_encoder_3": "the third text encoder",
}

# By what a name begins with, the part that the rest of it is of; "" is the network, whatever its name.
_PREFIXES = {
    "base_model.model.": None,  # PEFT's: the rest decides
    "base_model_model_": None,
    "lora_unet_": "",
    "lora_transformer_": "",
    "lycoris_": "",
    "unet.": "",
    "transformer.": "",
    "model.diffusion_model.": "",
    "diffusion_model.": "",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_": "text_encoder",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
_IN_TEXT_ENCODER = re.compile(r"(text_model[._])?encoder[._]layers[._]\d+[._](self_attn|mlp|layer_norm)")


def part_of(name: str) -> tuple[str, str]:
    """The part of the pipeline that a layer's name is of ("" for the network), and the rest of the name."""
    for prefix, part in _PREFIXES.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return part_of(rest) if part is None else (part, rest)
    return ("text_encoder" if _IN_TEXT_ENCODER.match(name) else ""), name


class LayerNames:
    """The modules with weights of a pipeline's network and text models, under every name they go by.

    Names are compared with underscores for dots, as sd-scripts writes them.
    """

    def __init__(self, pipeline: Any, network: str) -> None:
        self._paths: dict[str, dict[str, str]] = {}
        self.modules: dict[tuple[str, str], nn.Module] = {}
        for part in (network, *(part for part in PARTS if part.startswith("text_encoder"))):
            root = getattr(pipeline, part, None)
            if root is None:
                continue
            other_names = _sgm_names(root) if hasattr(root, "down_blocks") else {}
            paths: dict[str, str] = {}
            for path, module in root.named_modules():
                if getattr(module, "weight", None) is not None:
                    self.modules[part, path] = module
                    for name in {path, *_aliases(path), *_renamed(path, other_names)}:
                        paths[_flat(name)] = path
            self._paths["" if part == network else part] = paths
        self._network = network

    def find(self, name: str) -> tuple[str, str] | None:
        """The part's attribute of the pipeline and the module's path in it; None where there is no such layer."""
        part, rest = part_of(name)
        path = self._paths.get(part, {}).get(_flat(rest.replace(".processor.", ".")))
        return None if path is None else (part or self._network, path)


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _aliases(path: str) -> Iterator[str]:
    """CLIP's layers stood in a module of their own before transformers 5; and diffusers' first LoRAs shorten to_out."""
    if path.startswith(("encoder.", "embeddings.", "final_layer_norm")):
        yield f"text_model.{path}"
    elif path.startswith("text_model."):
        yield path.removeprefix("text_model.")
    if path.endswith(".to_out.0"):
        yield path.removesuffix(".0")
    if ".self_attn." in path:  # diffusers' first text LoRAs have the names of the UNet's projections
        head, _, projection = path.rpartition(".")
        yield f"{head}.to_{projection[0] if projection != 'out_proj' else 'out'}"


def _renamed(path: str, other_names: Mapping[str, str]) -> Iterator[str]:
    """The path by the names that the model's first authors gave its blocks."""
    for block, other in other_names.items():
        if path == block or path.startswith(f"{block}."):
            rest = path.removeprefix(block)
            if "resnets" in block:
                layer, dot, more = rest.removeprefix(".").partition(".")
                rest = f".{_SGM_RESNET.get(layer, layer)}{dot}{more}"
            yield other + rest


_SGM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _sgm_names(unet: Any) -> dict[str, str]:
    """Blocks of a UNet by path -> their names in Stability AI's code, which numbers them in one row."""
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            names[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for i, block in enumerate(unet.up_blocks):
        attends = hasattr(block, "attentions")
        for j in range(len(block.resnets)):
            names[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
            number += 1
        if block.upsamplers:
            names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{1 + attends}.conv"
    return names
