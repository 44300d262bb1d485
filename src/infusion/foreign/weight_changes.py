"""The tensors of a LoRA, LyCORIS or Custom Diffusion file -> how they change each weight of a pipeline."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from infusion.errors import UserError
from infusion.foreign.tensor_files import shown

MAX_RANK = 4096

# What the end of a tensor's name says it is. Every tool's names for one thing stand on one line.
_ENDINGS = {
    "down": r"(\.lora_A(\.default)?|\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)\.weight",
    "up": r"(\.lora_B(\.default)?|\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)\.weight",
    "mid": r"\.lora_mid\.weight",
    "up_bias": r"\.lora_B(\.default)?\.bias",
    "alpha": r"\.alpha|\.lora_A\.alpha|[._]lora\.(down\.weight\.)?alpha",
    "magnitude": r"\.lora_magnitude_vector(\.default)?(\.weight)?",
    "dora_scale": r"\.dora_scale",
    "hada": r"\.hada_(?P<hada>w[12]_[ab]|t[12])",
    "lokr": r"\.lokr_(?P<lokr>w[12](_[ab])?|t2)",
    "diff": r"\.diff",
    "diff_bias": r"\.diff_b",
    "norm": r"\.w_norm",
    "norm_bias": r"\.b_norm",
    "whole": r"(\.processor)?\.(?P<whole>to_[qkv]|to_out)_custom_diffusion(?P<index>\.0)?\.(?P<leaf>weight|bias)",
}
_NAME = re.compile(r"(?P<layer>.+?)(" + "|".join(f"(?P<is_{kind}>{end})" for kind, end in _ENDINGS.items()) + ")$")
_LYCORIS = ("mid", "hada", "lokr", "diff", "diff_bias", "norm", "norm_bias")


@dataclass
class LayerChange:
    """The tensors that a file has for one layer, by their roles.

    alpha: where the file has one; the product of the factors counts alpha / rank. scale: what it counts where that is
    said beside the tensors.
    """

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    alpha: float | None = None
    scale: float | None = None

    @property
    def rank(self) -> int | None:
        return rank_of({role: tensor.shape for role, tensor in self.tensors.items()})


def layer_changes(tensors: Mapping[str, Tensor]) -> dict[str, LayerChange]:
    """The tensors of a file, put together by layer.

    Raises:
        UserError: one of them is of no known role; nothing is left out in silence.
    """
    changes: dict[str, LayerChange] = {}
    unknown = []
    for name, tensor in tensors.items():
        found = tensor_role(name)
        if found is None:
            unknown.append(name)
            continue
        layer, role = found
        change = changes.setdefault(layer, LayerChange(layer))
        if role == "alpha":
            if tensor.numel() != 1:
                raise UserError(f'Its alpha "{shown(name, 120)}" is not one number.')
            change.alpha = float(tensor)
        else:
            change.tensors[role] = tensor
    if unknown:
        raise UserError(
            f"{len(unknown)} of its {len(tensors)} tensors belong to nothing that is known here, "
            f'"{shown(unknown[0], 120)}" for one: what they do cannot be told, so nothing of it is used.'
        )
    return changes


def tensor_role(name: str) -> tuple[str, str] | None:
    """The layer that a tensor is of and what it is there ("down", "hada_w1_a", ...); None for any other tensor."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    kind = next(kind for kind in _ENDINGS if found[f"is_{kind}"])
    if kind in ("hada", "lokr"):
        return found["layer"], f"{kind}_{found[kind]}"
    if kind == "whole":
        return f"{found['layer']}.{found['whole']}{found['index'] or ''}", f"whole_{found['leaf']}"
    return found["layer"], kind


def kind_of(roles: Collection[str]) -> Literal["Custom Diffusion", "LyCORIS", "LoRA"]:
    """The name of the customization whose layers have tensors of these roles."""
    if any(role.startswith("whole") for role in roles):
        return "Custom Diffusion"
    return "LyCORIS" if any(role.startswith(_LYCORIS) for role in roles) else "LoRA"


def rank_of(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Rank of the factors of a layer, given their shapes by role; None where it is changed as a whole.

    Raises:
        ValueError: no layer has such a rank.
    """
    for role, axis in (("down", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if role in shapes:
            rank = shapes[role][axis] if len(shapes[role]) > 1 else 0
            if not 0 < rank <= MAX_RANK:
                raise ValueError(f"of rank {rank:,}, where 1 to {MAX_RANK:,} can be")
            return rank
    return None


def changed_weights(change: LayerChange, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """The layer's weight and bias, as far as they change, as the customization at full strength has them; fp32.

    Formulas: LoRA (arXiv 2106.09685), LoCon, LoHa and LoKr (arXiv 2309.14859), DoRA (arXiv 2402.09353).

    Raises:
        UserError: the tensors do not fit the layer, or each other.
    """
    try:
        return _changed(change, weight.detach().float(), None if bias is None else bias.detach().float())
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        there = ", ".join(f"{role} {list(tensor.shape)}" for role, tensor in sorted(change.tensors.items()))
        raise UserError(
            f'Its layer "{shown(change.name, 120)}" ({shown(there, 200)}) does not fit the layer of the base, whose '
            f"weight is {list(weight.shape)}: it was made for another model, or is damaged."
        ) from error


def _changed(change: LayerChange, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    tensors = {role: tensor.to(weight.device, torch.float32) for role, tensor in change.tensors.items()}
    scale = _scale(change)
    found: dict[str, Tensor] = {}
    difference = _difference(tensors, scale, weight.shape)
    if difference is not None:
        found["weight"] = weight + difference.reshape(weight.shape)
    if "magnitude" in tensors:
        found["weight"] = _with_lengths(found["weight"], tensors["magnitude"])
    if "dora_scale" in tensors:
        lengths = tensors["dora_scale"]
        axis = 1 if lengths.shape[0] == 1 < weight.shape[0] else 0  # of columns, or of rows
        found["weight"] = _with_lengths(found["weight"].transpose(0, axis), lengths).transpose(0, axis)
    if "whole_weight" in tensors:
        found["weight"] = tensors["whole_weight"].view(weight.shape)
    for role, factor in (("up_bias", scale), ("diff_bias", 1.0), ("norm_bias", 1.0), ("whole_bias", 1.0)):
        if role in tensors:
            if bias is None:
                raise ValueError("there is no bias")
            start = torch.zeros_like(bias) if role == "whole_bias" else bias
            found["bias"] = start + factor * tensors[role].view(bias.shape)
    return found


def _scale(change: LayerChange) -> float:
    if change.scale is not None:
        return change.scale
    if change.alpha is None or change.rank is None:
        return 1.0
    return change.alpha / change.rank


def _difference(t: Mapping[str, Tensor], scale: float, shape: Sequence[int]) -> Tensor | None:
    """What is added to the weight, of as many numbers as it; None where only a bias or a magnitude is given."""
    if "down" in t:
        return scale * _lora(t["up"], t["down"], t.get("mid"))
    if "hada_w1_a" in t:
        first, second = (_factors(t[f"hada_w{i}_a"], t[f"hada_w{i}_b"], t.get(f"hada_t{i}")) for i in (1, 2))
        return scale * first * second
    if "lokr_w1" in t or "lokr_w1_a" in t:
        first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        second = t["lokr_w2"] if "lokr_w2" in t else _factors(t["lokr_w2_a"], t["lokr_w2_b"], t.get("lokr_t2"))
        if first.numel() * second.numel() != math.prod(shape):  # before there is a product of that size
            raise ValueError("the factors do not multiply to the weight")
        return scale * torch.kron(first.reshape(*first.shape, *[1] * (second.dim() - first.dim())), second.contiguous())
    return t.get("diff", t.get("norm"))


def _lora(up: Tensor, down: Tensor, mid: Tensor | None) -> Tensor:
    """up [out, r] or [out, r, 1, 1] times down [r, in] or [r, in, k, k], with mid [r, r, k, k] between them."""
    if mid is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("or,rskl,si->oikl", up.flatten(1), mid, down.flatten(1))


def _factors(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """a [out, r] times b [r, in * k * k]; around a core [r, r, k, k] they are [r, out] and [r, in]."""
    return a @ b.flatten(1) if core is None else torch.einsum("ijkl,jr,ip->prkl", core, b, a)


def _with_lengths(weight: Tensor, lengths: Tensor) -> Tensor:
    """The weight with the length of its rows set."""
    there = weight.flatten(1).norm(dim=1)
    factors = lengths.reshape(there.shape) / there.clamp_min(torch.finfo(torch.float32).tiny)
    return weight * factors.view(-1, *[1] * (weight.dim() - 1))
