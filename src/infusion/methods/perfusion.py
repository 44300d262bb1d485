"""Perfusion: a word, and gated rank-one edits of values under locked keys (Tewel et al., arXiv 2305.01644)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infusion.base.cross_attention import cross_attentions, value_widths
from infusion.base.customization import Edit, WrappedModules
from infusion.base.edits import bare
from infusion.base.model import Base
from infusion.base.token_vectors import ALL_LAYERS, TextReader, TokenVectors
from infusion.errors import UserError
from infusion.methods.adapter import Adapter, embeddings_of, load_tensors
from infusion.methods.closed_form import text_metric
from infusion.methods.method import MASKED_LOSS, Method
from infusion.settings import setting

if TYPE_CHECKING:
    from infusion.concepts.concept import Concept

_VECTORS = "token_vectors"
_TARGET = ".to_v.target"
_INPUTS = ("concept_input", "concept_direction", "class_input")
_EMA = 0.99


@dataclass(frozen=True)
class Perfusion(Method):
    """Keys stay those of the class noun; the value at the concept's encoding i* moves to a learnt target o*.

    After the formulas of reimplementations, as no official code is public, and in residual form: where those replace
    the part of an input along i* by the gated target, here the gated difference is added,

        h(e) = W e + sigmoid((sim / E - bias) / temperature) (o* - W i*),  sim = e^T C^-1 i*,  E = i*^T C^-1 i*,

    so that an untrained edit is none at all. C is the second moment of what the base's own vocabulary encodes to. The
    gated edits of several concepts simply add up: the paper's orthogonal basis, which keeps them apart, is left out.

    Of the word, of the values' targets, and of the gate.
    """

    name: ClassVar[str] = "perfusion"
    paper: ClassVar[str] = "arXiv 2305.01644"

    learning_rate: float = setting(0.03, help="AdamW's learning rate for the targets of the values.", above=0)
    max_train_steps: int = setting(400, help="Optimiser steps.", minimum=1)
    masked_loss: bool = setting(True, help=MASKED_LOSS)
    embedding_learning_rate: float = setting(0.006, help="AdamW's learning rate for the word.", above=0)
    training_bias: float = setting(0.75, help="Similarity at which the gate is half open in training.")
    training_temperature: float = setting(0.1, help="How soft the gate is in training.", above=0)
    bias: float = setting(0.7, help="Similarity at which the gate is half open in drawing: higher is less concept.")
    temperature: float = setting(0.15, help="How soft the gate is in drawing.", above=0)

    def adapter(self, base: Base, concept: "Concept") -> "PerfusionAdapter":
        adapter = PerfusionAdapter(self, concept.name, concept.class_noun, base).to(base.device)
        adapter.start(base)
        return adapter

    def num_parameters(self, base: Base, class_noun: str) -> int:
        """The word and one target a layer: 768 + 12,480 on Stable Diffusion 1.5 for "cat"."""
        return embeddings_of(base, class_noun).numel() + sum(value_widths(base.network).values())

    def restored(
        self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str
    ) -> "PerfusionAdapter":
        return load_tensors(PerfusionAdapter(self, concept_name, class_noun, base), tensors, base)


class PerfusionAdapter(Adapter):
    """The word's vectors [n, width]; o* [width] by layer; i*, C^-1 i* and the class noun's encoding, [C] each."""

    method: Perfusion

    def __init__(self, method: Perfusion, concept_name: str, class_noun: str, base: Base) -> None:
        super().__init__(method, concept_name, class_noun)
        self.register_parameter(_VECTORS, nn.Parameter(embeddings_of(base, class_noun)))
        for path, width in value_widths(bare(base.network)).items():
            self.register_parameter(path + _TARGET, nn.Parameter(torch.zeros(width)))
        for name in _INPUTS:
            self.register_buffer(name, torch.zeros(base.network.config.cross_attention_dim))

    @torch.no_grad()
    def start(self, base: Base) -> None:
        """Set i* to the class noun's encoding, and the targets to what the base makes of it."""
        encoding = self._encoding(base)
        for name in _INPUTS:
            self.get_buffer(name).copy_(encoding)
        for path, layer in cross_attentions(base.network).items():
            self.get_parameter(path + _TARGET).copy_(F.linear(encoding, layer.to_v.weight.float()))
        self._point(base)

    @torch.no_grad()
    def after_step(self, base: Base) -> None:
        """i* follows the encoding of the word that is being learnt: a moving average."""
        self.get_buffer("concept_input").lerp_(self._encoding(base), 1 - _EMA)
        self._point(base)

    def _point(self, base: Base) -> None:
        self.get_buffer("concept_direction").copy_(text_metric(base) @ self.get_buffer("concept_input"))

    def _encoding(self, base: Base) -> Tensor:
        """What the text model makes of the word, at its last token: [C]."""
        conditioning = base.encode([f"a photo of a <{self.concept_name}>"], {self.concept_name: self.words})
        read = TextReader(base, [self.word()]).read(conditioning)
        return read.text_states[0, max(conditioning.concept_tokens[0][self.concept_name])].float()

    def word(self) -> TokenVectors:
        return TokenVectors(self.concept_name, self.words, {ALL_LAYERS: self.get_parameter(_VECTORS)})

    def parameter_groups(self) -> list[dict[str, Any]]:
        targets = [parameter for name, parameter in self.named_parameters() if name != _VECTORS]
        return [
            {"params": targets, "lr": self.method.learning_rate},
            {"params": [self.get_parameter(_VECTORS)], "lr": self.method.embedding_learning_rate},
        ]

    def check_fits(self, base: Base) -> None:
        targets = {name.removesuffix(_TARGET): len(p) for name, p in self.named_parameters() if name != _VECTORS}
        if targets != value_widths(bare(base.network)):
            raise UserError(
                f'<{self.concept_name}> has targets for other cross-attention layers than those of "{base.id}": it is '
                "for another architecture."
            )

    def edits(self, base: Base) -> Sequence[Edit]:
        wrappers = {}
        for path, layer in cross_attentions(base.network).items():
            wrappers[f"{path}.to_k"] = partial(
                self._gated, F.linear(self.get_buffer("class_input"), _weight(layer.to_k))
            )
            wrappers[f"{path}.to_v"] = partial(self._gated, self.get_parameter(path + _TARGET))
        return [self.word(), WrappedModules(wrappers)]

    def _gated(self, target: Tensor, projection: nn.Module) -> nn.Module:
        training = self.training
        return _GatedRankOne(
            projection,
            target,
            self.get_buffer("concept_input"),
            self.get_buffer("concept_direction"),
            self.method.training_bias if training else self.method.bias,
            self.method.training_temperature if training else self.method.temperature,
        )


class _GatedRankOne(nn.Module):
    """A projection of text states e [B, T, C], with the gated edit added: [B, T, width]."""

    def __init__(
        self, projection: nn.Module, target: Tensor, own: Tensor, direction: Tensor, bias: float, temperature: float
    ) -> None:
        super().__init__()
        self.projection = projection
        self.change = target - F.linear(own, _weight(projection))
        self.direction = direction / (own @ direction)
        self.bias = bias
        self.temperature = temperature

    @property
    def weight(self) -> Tensor:
        return _weight(self.projection)

    @property
    def out_features(self) -> int:
        return self.projection.out_features  # type: ignore[return-value]

    def forward(self, states: Tensor) -> Tensor:
        output = self.projection(states)
        direction, change = self.direction.to(states.device), self.change.to(states.device)
        gate = torch.sigmoid((states.float() @ direction - self.bias) / self.temperature)
        return output + (gate[..., None] * change).to(output.dtype)


def _weight(projection: Any) -> Tensor:
    return projection.weight.float()
