"""The value residuals of one concept, and how they edit a base."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from infusion.base.families import TextLayer
from infusion.base.model import Base
from infusion.base.streams import ValueResiduals
from infusion.errors import UserError
from infusion.methods.adapter import Adapter, load_tensors
from infusion.methods.infusion import Infusion

_VALUE, _KEY = ".value_residual", ".key_residual"
_NAMED_LAYERS = {"all": "*", "down": "down_blocks.*", "mid": "mid_block.*", "up": "up_blocks.*"}


def chosen_widths(method: Infusion, base: Base) -> dict[str, int]:
    """Lengths of the residuals of the layers that the method's settings choose, by name in the file.

    Raises:
        UserError: `layers` matches no layer of the base that reads text.
    """
    there = base.text_layers
    patterns = [_NAMED_LAYERS.get(part.strip(), part.strip()) for part in method.layers.split(",")]
    chosen = {path: layer for path, layer in there.items() if any(fnmatchcase(path, p) for p in patterns)}
    if not chosen:
        raise UserError(
            f'layers = "{method.layers}" matches none of this model\'s {len(there)} layers that read text; allowed '
            f"are {', '.join(_NAMED_LAYERS)}, or patterns for paths such as {next(iter(there), 'none')}."
        )
    return residual_widths(chosen, method.keys)


def restored(
    method: Infusion, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str
) -> "InfusionAdapter":
    """The adapter of a file's tensors."""
    widths = {name: tensor.numel() for name, tensor in tensors.items()}
    _check_names(widths, base, concept_name, method.keys)
    return load_tensors(InfusionAdapter(method, concept_name, class_noun, widths), tensors, base)


class InfusionAdapter(Adapter):
    """The value residuals r_l of one concept, fp32, at exactly 0 until trained.

    `state_dict()` names a residual by its layer:
    `up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.value_residual`.
    """

    method: Infusion

    def __init__(self, method: Infusion, concept_name: str, class_noun: str, widths: Mapping[str, int]) -> None:
        super().__init__(method, concept_name, class_noun)
        for name, width in widths.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(width)))

    def residuals(self, suffix: str = _VALUE) -> dict[str, nn.Parameter]:
        """The value residuals by layer path."""
        named = self.named_parameters()
        return {_layer_path(name): parameter for name, parameter in named if name.endswith(suffix)}

    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """Which rows take the foundation's queries, where that is left to chance."""
        if self.method.streams != "mixed":
            return None
        return torch.rand(batch_size, generator=generator) < self.method.mixing_probability

    def training_edits(self, base: Base, rows: Sequence[int], drawn: Tensor | None) -> list[ValueResiduals]:
        if drawn is None:
            return self.edits(base)
        return self._edits(dict(zip(rows, drawn.tolist(), strict=True)))

    def check_fits(self, base: Base) -> None:
        widths = {name: len(residual) for name, residual in self.named_parameters()}
        _check_names(widths, base, self.concept_name, self.method.keys)

    def edits(self, base: Base) -> list[ValueResiduals]:
        return self._edits(self.method.streams != "single")

    def _edits(self, borrows: bool | Mapping[int, bool]) -> list[ValueResiduals]:
        return [ValueResiduals(self.concept_name, self.residuals(), borrows, self.residuals(_KEY))]


def residual_widths(layers: Mapping[str, TextLayer], keys: bool) -> dict[str, int]:
    """Lengths of the residuals of layers, by name in the file: the projection's path and what is added to it."""
    widths = {f"{path}.{layer.values}{_VALUE}": layer.width for path, layer in layers.items()}
    if keys:
        widths |= {f"{path}.{layer.keys}{_KEY}": layer.width for path, layer in layers.items()}
    return widths


def _layer_path(name: str) -> str:
    """The path of the layer that the residual called `name` is of."""
    return name.rsplit(".", 2)[0]


def _check_names(widths: Mapping[str, int], base: Base, concept_name: str, keys: bool) -> None:
    there = residual_widths(base.text_layers, keys)
    for name, width in widths.items():
        if there.get(name) != width:
            raise UserError(
                f'The adapter of "{concept_name}" edits {_layer_path(name)} with width {width}, but the base '
                f'"{base.id}" has {there.get(name, "no such layer")} there: it is for another architecture.'
            )
