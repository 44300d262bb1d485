"""The columns of an attention map, against the map that torch's own attention makes."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from infusion.base.rank_form import map_columns

HEADS, WIDTH, PLACES, TOKENS = 2, 8, 5, 7


def drawn(dtype: torch.dtype) -> tuple[Attention, Tensor, Tensor, Tensor, Tensor]:
    """An attention layer, queries, keys, two sets of tokens a row, and a bias that hides the last token."""
    torch.manual_seed(0)
    attention = Attention(query_dim=WIDTH, cross_attention_dim=WIDTH, heads=HEADS, dim_head=WIDTH // HEADS)
    queries, keys = (3 * torch.randn(3, length, WIDTH).to(dtype) for length in (PLACES, TOKENS))
    tokens = torch.zeros(3, TOKENS, 2)
    tokens[:, 1, 0] = tokens[1:, 2:5, 1] = 1
    bias = torch.zeros(3, 1, TOKENS).to(dtype)
    bias[..., -1] = -1e4
    return attention, queries, keys, tokens, bias


def expected(queries: Tensor, keys: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """From the map itself, read off by torch's attention with one value for every token; in fp64."""
    queries, keys = (states.double().unflatten(-1, (HEADS, -1)).transpose(1, 2) for states in (queries, keys))
    every = torch.eye(TOKENS, dtype=torch.float64).expand(3, HEADS, -1, -1)
    bias = None if bias is None else bias.double()[:, None]
    maps = torch.nn.functional.scaled_dot_product_attention(queries, keys, every, attn_mask=bias)
    return (maps @ tokens.double()[:, None]).permute(0, 2, 3, 1).flatten(2)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_columns_of_the_map(dtype: torch.dtype, tolerance: float, with_bias: bool) -> None:
    attention, queries, keys, tokens, bias = drawn(dtype)
    given = bias if with_bias else None
    truth = expected(queries, keys, tokens, given)
    columns = map_columns(attention, queries, keys, tokens, given)
    assert columns.dtype == dtype and columns.shape == (3, PLACES, 2 * HEADS)
    torch.testing.assert_close(columns.double(), truth, atol=tolerance, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(map_columns(attention, queries, keys, tokens, given), columns, atol=0, rtol=0)
