"""Infusion: one learned vector per cross-attention layer, added to the value at the concept's tokens (2404.14007)."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from infusion.base.families import TextLayer
from infusion.base.model import Base
from infusion.base.streams import ValueResiduals
from infusion.errors import UserError
from infusion.methods.method import Adapter, Method, load_tensors
from infusion.recipes import InfusionSettings

if TYPE_CHECKING:
    from infusion.concepts.concept import Concept

_VALUE, _KEY = ".value_residual", ".key_residual"
_NAMED_LAYERS = {"all": "*", "down": "down_blocks.*", "mid": "mid_block.*", "up": "up_blocks.*"}


class Infusion(InfusionSettings, Method):
    """Value residuals, and whose attention maps they act on."""

    paper: ClassVar[str] = "arXiv 2404.14007"
    trains_together: ClassVar[bool] = True

    @property
    def notes(self) -> tuple[str, ...]:
        if self.streams == "single" or self.keys:
            maps = "Attention maps are the concept's own, so silhouette, pose and layout may leave the base model's."
        else:
            maps = "Attention maps stay the base model's, so silhouette, pose and layout stay the base model's too."
        vectors = "a vector for the values and one for the keys" if self.keys else "one vector"
        return (
            f"{maps} What is learnt is {vectors} a layer: it carries main colours, and neither patterns nor where on "
            "the body each mark sits.",
            "Prompts without the concept are the base model's by construction, so a difference of 0 is a test of the "
            "implementation and no measurement of quality.",
        )

    def adapter(self, base: Base, concept: "Concept") -> "InfusionAdapter":
        """Zero residuals for the chosen layers: a fresh adapter is silent.

        Raises:
            UserError: `layers` matches no layer of the base that reads text.
        """
        layers = self._layers(base)
        return InfusionAdapter(self, concept.name, concept.class_noun, residual_widths(layers, self.keys)).to(
            base.device
        )

    def num_parameters(self, base: Base, class_noun: str) -> int:
        """The sum of the widths of the chosen layers: 12,480 for all of Stable Diffusion 1.5; twice that with keys."""
        return sum(residual_widths(self._layers(base), self.keys).values())

    def _layers(self, base: Base) -> dict[str, TextLayer]:
        there = base.text_layers
        patterns = [_NAMED_LAYERS.get(part.strip(), part.strip()) for part in self.layers.split(",")]
        chosen = {path: layer for path, layer in there.items() if any(fnmatchcase(path, p) for p in patterns)}
        if not chosen:
            raise UserError(
                f'layers = "{self.layers}" matches none of this model\'s {len(there)} layers that read text; allowed '
                f"are {', '.join(_NAMED_LAYERS)}, or patterns for paths such as {next(iter(there), 'none')}."
            )
        return chosen

    def restored(
        self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str
    ) -> "InfusionAdapter":
        widths = {name: tensor.numel() for name, tensor in tensors.items()}
        _check_names(widths, base, concept_name, self.keys)
        return load_tensors(InfusionAdapter(self, concept_name, class_noun, widths), tensors, base)


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

    def draw_borrows(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        if self.method.streams != "mixed":
            return None
        return torch.rand(batch_size, generator=generator) < self.method.mixing_probability

    def check_fits(self, base: Base) -> None:
        widths = {name: len(residual) for name, residual in self.named_parameters()}
        _check_names(widths, base, self.concept_name, self.method.keys)

    def edits(self, base: Base) -> list[ValueResiduals]:
        borrows = self.method.streams != "single"
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
