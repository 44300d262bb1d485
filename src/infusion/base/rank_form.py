"""What the foundation's attention did + value residuals -> what the customized attention does, in a small product.

Both streams read one text and share the map A, so that per head, with its share W of the output projection,

    A (V + sum_{j in J} e_j r^T) W  =  A V W + (sum_{j in J} A e_j) (r^T W)

The first term is the foundation's own output; the second is a column of its map times one vector. The customized row
needs no queries, keys, values or softmax of its own.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor
from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from torch import Tensor, einsum, nn

from infusion.base.families import TextLayer

_PLAIN = (AttnProcessor, AttnProcessor2_0, SanaAttnProcessor2_0, XFormersAttnProcessor)


def has_rank_form(layer: TextLayer) -> bool:
    """Whether the layer does softmax(Q K^T) V W and nothing else, where Q and K are what its projections give."""
    attention = layer.attention
    return (
        isinstance(attention, Attention)
        and type(attention.processor) in _PLAIN
        and attention.is_cross_attention
        and attention.scale_qk
        and attention.norm_q is None
        and attention.norm_k is None
        and type(attention.to_out[0]) is nn.Linear
        and attention.to_out[0].weight.element_size() > 1  # weights in 8 bits are widened for their layer's own call
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
        and not (attention.training and attention.dropout)
    )


def map_columns(attention: Any, queries: Tensor, keys: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """How much each place attends to each of M sets of tokens: [K, N, M * H], the heads H last.

    queries: [K, N, W]. keys: [K, T, W]. tokens: [K, T, M], 1 where a token is in a set. bias: [K, 1, T], numbers, not
    truth values, added to the scores; None for none.
    """
    precise = torch.promote_types(queries.dtype, torch.float32)

    def by_head(states: Tensor) -> Tensor:
        return states.unflatten(-1, (attention.heads, -1)).transpose(1, 2).to(precise)

    with _no_autocast(queries.device):  # which would make these products in half precision
        scores = by_head(queries) * attention.scale @ by_head(keys).mT  # [K, H, N, T]
        if bias is not None:
            scores += bias[:, None]
        columns = scores.softmax(-1) @ tokens.to(precise)[:, None]
    return columns.permute(0, 2, 3, 1).flatten(2).to(queries.dtype)


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    there = torch.amp.is_autocast_available(device.type)  # not where shapes alone are followed
    return torch.autocast(device.type, enabled=False) if there else nullcontext()


def directions(attention: Any, vectors: Tensor) -> Tensor:
    """Residuals [C, W] as each head's share of the output projection turns them: [C, H, D]."""
    output = attention.to_out[0].weight  # [D, W]
    by_head = (states.unflatten(-1, (attention.heads, -1)) for states in (output, vectors.to(output)))
    return einsum("dhw,chw->chd", *by_head)
