"""A network -> its cross-attention layers, by the path a residual is named after; and the maps they draw."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from infusion.base.edits import hook_output
from infusion.base.families.family import attention_layers, is_cross_attention
from infusion.errors import UserError


def cross_attentions(network: nn.Module) -> dict[str, Attention]:
    """Every cross-attention to text by module path, in the network's own order; none where they attend jointly.

    Raises:
        UserError: the projections are fused, so that nothing could be read from or added to one of them.
    """
    layers = attention_layers(network, is_cross_attention)
    return {path: layer.attention for path, layer in layers.items()}  # type: ignore[misc]


def value_widths(network: nn.Module) -> dict[str, int]:
    """Width of the value projection of every cross-attention layer."""
    return {path: layer.to_v.out_features for path, layer in cross_attentions(network).items()}


class AttentionRecorder:
    """While active, keeps what every cross-attention layer's map is made of, and computes maps on request.

    attention_mask: [B, T], 0 at tokens that are not read. Gradients flow through the maps, where they are on.

    Raises:
        UserError: the network has no cross-attention.
    """

    def __init__(self, network: nn.Module, attention_mask: Tensor | None = None) -> None:
        self.layers = cross_attentions(network)
        if not self.layers:
            raise UserError(
                "In this model image and text attend jointly, so its attention cannot say where the subject is: give "
                "masks, in a folder masks/ among the images, or learn the images whole (--no-masked-loss)."
            )
        self.attention_mask = attention_mask
        self.queries: dict[str, Tensor] = {}
        self.keys: dict[str, Tensor] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "AttentionRecorder":
        for path, layer in self.layers.items():
            for store, norm, projection in (
                (self.queries, layer.norm_q, layer.to_q),
                (self.keys, layer.norm_k, layer.to_k),
            ):
                last = projection if norm is None else norm
                self._stack.enter_context(hook_output(last, self._keeper(store, path)))
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
        layer = self.layers[path]

        def by_head(states: Tensor) -> Tensor:  # [B, L, H * D] -> [B, H, L, D], if not so already
            return (
                states.float() if states.ndim == 4 else states.float().unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            )

        query, key = by_head(self.queries[path]), by_head(self.keys[path])
        scores = query @ key.transpose(-1, -2) * layer.scale
        if self.attention_mask is not None:
            scores = scores.masked_fill(self.attention_mask[:, None, None].to(scores.device) == 0, -torch.inf)
        return torch.softmax(scores, dim=-1)

    def token_map(self, rows: Sequence[Sequence[int]], height: int, width: int) -> Tensor:
        """How much each place attends to given tokens: mean over heads and layers, [B, height, width].

        rows: token positions per batch row. height, width: size of the network's input; coarser layers are
        enlarged to it.
        """
        return self.token_maps([rows], height, width)[0]

    def token_maps(self, concepts: Sequence[Sequence[Sequence[int]]], height: int, width: int) -> Tensor:
        """The `token_map` of each of K sets of token positions per batch row, [K, B, height, width]."""
        total = torch.zeros(len(concepts), len(concepts[0]), height, width)
        for path in self.layers:
            maps = self.maps(path).mean(1)  # [B, N, T]
            columns = torch.stack(
                [torch.stack([m[:, list(row)].sum(-1) for m, row in zip(maps, rows, strict=True)]) for rows in concepts]
            ).cpu()
            shrink = round((height * width / columns.shape[-1]) ** 0.5)
            images = columns.reshape(*columns.shape[:2], height // shrink, width // shrink)
            total += nn.functional.interpolate(images, (height, width), mode="bilinear", align_corners=False)
        return total / len(self.layers)
