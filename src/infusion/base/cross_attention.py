"""A network -> its cross-attention layers, by the path a residual is named after; and the maps they draw."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from infusion.base.edits import hook_output
from infusion.errors import UserError


def cross_attentions(network: nn.Module) -> dict[str, Attention]:
    """Every text cross-attention of a UNet by module path, in the network's own order.

    Raises:
        UserError: the projections are fused, so that nothing could be read from or added to one of them.
    """
    layers = {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    }
    if any(layer.fused_projections for layer in layers.values()):
        raise UserError("The model's attention projections are fused; call unfuse_qkv_projections() on it first.")
    return layers


def value_widths(network: nn.Module) -> dict[str, int]:
    """Width of the value projection of every cross-attention layer."""
    return {path: layer.to_v.out_features for path, layer in cross_attentions(network).items()}


class AttentionRecorder:
    """While active, keeps what every cross-attention layer's map is made of, and computes maps on request.

    Gradients flow through the maps, where they are on.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = cross_attentions(network)
        self.queries: dict[str, Tensor] = {}
        self.keys: dict[str, Tensor] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "AttentionRecorder":
        for path, layer in self.layers.items():
            self._stack.enter_context(hook_output(layer.to_q, self._keeper(self.queries, path)))
            self._stack.enter_context(hook_output(layer.to_k, self._keeper(self.keys, path)))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @staticmethod
    def _keeper(store: dict[str, Tensor], path: str) -> Callable[[Tensor], Tensor]:
        def keep(output: Tensor) -> Tensor:
            store[path] = output
            return output

        return keep

    def maps(self, path: str) -> Tensor:
        """Attention map of one layer in the last forward pass, [B, H heads, N image positions, T tokens], fp32."""
        heads = self.layers[path].heads

        def by_head(states: Tensor) -> Tensor:  # [B, L, H * D] -> [B, H, L, D]
            return states.float().unflatten(-1, (heads, -1)).transpose(1, 2)

        query, key = by_head(self.queries[path]), by_head(self.keys[path])
        return torch.softmax(query @ key.transpose(-1, -2) * self.layers[path].scale, dim=-1)

    def token_map(self, rows: Iterable[Iterable[int]], height: int, width: int) -> Tensor:
        """How much each place attends to given tokens: mean over heads and layers, [B, height, width].

        rows: token positions per batch row. height, width: size of the network's input; coarser layers are
        enlarged to it.
        """
        picked = [list(row) for row in rows]
        total = torch.zeros(len(picked), height, width)
        for path in self.layers:
            maps = self.maps(path).mean(1)  # [B, N, T]
            column = torch.stack([m[:, row].sum(-1) for m, row in zip(maps, picked, strict=True)]).cpu()
            shrink = round((height * width / column.shape[-1]) ** 0.5)
            image = column.reshape(len(picked), 1, height // shrink, width // shrink)
            enlarged = nn.functional.interpolate(image, (height, width), mode="bilinear", align_corners=False)
            total += enlarged[:, 0] / len(self.layers)
        return total
