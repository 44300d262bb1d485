"""The keys and values of every cross-attention, and a rare word: what Custom Diffusion's kin learn, and their merge.

Adapters of several concepts are merged in closed form (arXiv 2212.04488).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infusion.base.cross_attention import cross_attentions
from infusion.base.customization import Edit, Merged, SwappedParameters
from infusion.base.edits import bare
from infusion.base.model import Base
from infusion.base.token_vectors import ALL_LAYERS, TextReader, TokenVectors
from infusion.concepts.concept import Concept
from infusion.errors import UserError
from infusion.methods.adapter import Adapter, embeddings_of, load_tensors
from infusion.methods.closed_form import sentence_ends, text_metric
from infusion.methods.method import PriorPreservingMethod, RareTokenMethod
from infusion.settings import setting

_VECTORS = "rare_token_vectors"
_LIKE_STATES = 1e-3  # singular value, as a share of the largest, below which states are taken to be alike


@dataclass(frozen=True)
class KeysAndValuesMethod(PriorPreservingMethod):
    """Of a method that learns these tensors; its adapters merge in closed form. Defaults: Custom Diffusion's steps and
    its learning rate after scaling."""

    learning_rate: float = setting(8e-5, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(250, help="Optimiser steps.", minimum=1)

    def adapter(self, base: Base, concept: Concept) -> "KeysAndValuesAdapter":
        return self.fresh(base, concept.name, concept.class_noun)

    def fresh(self, base: Base, concept_name: str, class_noun: str) -> "KeysAndValuesAdapter":
        return KeysAndValuesAdapter(self, concept_name, class_noun, base)

    def num_parameters(self, base: Base, class_noun: str) -> int:
        """Both weights of every layer, and the rare token's vectors: 19.2 million on Stable Diffusion 1.5."""
        weights = sum(weight.numel() for weight in keys_and_values(base).values())
        return weights + embeddings_of(base, self.rare_token).numel()

    def restored(
        self, base: Base, tensors: Mapping[str, Tensor], concept_name: str, class_noun: str
    ) -> "KeysAndValuesAdapter":
        return load_tensors(self.fresh(base, concept_name, class_noun), tensors, base)

    @classmethod
    def merge(cls, base: Base, adapters: Sequence["KeysAndValuesAdapter"]) -> Sequence[Merged]:
        """The concepts on one set of weights."""
        return [merged(base, adapters)]


class KeysAndValuesAdapter(Adapter):
    """Weights [out, in] by the network's own paths, and the rare token's vectors [n, width]."""

    method: RareTokenMethod

    def __init__(self, method: RareTokenMethod, concept_name: str, class_noun: str, base: Base) -> None:
        super().__init__(method, concept_name, class_noun)
        self.register_parameter(_VECTORS, nn.Parameter(embeddings_of(base, method.rare_token)))
        self.register_buffer("noun_vectors", embeddings_of(base, class_noun), persistent=False)
        for path, weight in keys_and_values(base).items():
            self.register_parameter(path, nn.Parameter(weight.detach().float().clone()))

    def weights(self) -> dict[str, nn.Parameter]:
        return {path: weight for path, weight in self.named_parameters() if path != _VECTORS}

    def word(self) -> TokenVectors:
        vectors: Any = torch.cat([self.get_parameter(_VECTORS), self.get_buffer("noun_vectors")])
        return TokenVectors(self.concept_name, self.words, {ALL_LAYERS: vectors})

    def check_fits(self, base: Base) -> None:
        there = {path: weight.shape for path, weight in keys_and_values(base).items()}
        if {path: weight.shape for path, weight in self.weights().items()} != there:
            raise UserError(
                f'The weights of <{self.concept_name}> are not those of the cross-attentions of "{base.id}": they are '
                "for another architecture."
            )

    def edits(self, base: Base) -> list[Edit]:
        weights, dtype = self.weights(), base.dtype
        return [SwappedParameters({path: weight.to(dtype) for path, weight in weights.items()}), self.word()]


@torch.no_grad()
def merged(base: Base, adapters: Sequence[KeysAndValuesAdapter]) -> Merged:
    """One set of weights for the concepts of all adapters, which keeps every concept's outputs and changes typical ones
    least.

    The constrained least squares of the paper's section 3.3: min ||W Creg^T - W0 Creg^T|| with W C^T = V, where C are
    the concepts' text states and V what each concept's own weights make of them:

        W = W0 + v^T d,  d = C (Creg^T Creg)^-1,  v^T = (V - W0 C^T) (d C^T)^-1

    Two concepts that begin as one rare token, or are of one class, may have states that hardly differ; to tell them
    apart would take weights that change everything else. So d C^T is inverted without its smallest singular values:
    like states get the mean of what they ask for. Concepts to be merged are best trained with rare tokens of their
    own.
    """
    states = [_exact(_concept_states(base, adapter)) for adapter in adapters]  # [n, C] each
    C = torch.cat(states)
    d = C @ _exact(text_metric(base))
    inverse = torch.linalg.pinv(d @ C.T, rtol=_LIKE_STATES)
    weights = {}
    for path, weight in keys_and_values(base).items():
        W0 = _exact(weight)
        own = [_exact(adapter.weights()[path]) for adapter in adapters]
        V = torch.cat([W @ c.T for W, c in zip(own, states, strict=True)], dim=1)
        vT = (V - W0 @ C.T) @ inverse
        weights[path] = (W0 + vT @ d).to(weight.device, weight.dtype)
    edits: list[Edit] = [SwappedParameters(weights), *(adapter.word() for adapter in adapters)]
    spoken = {name: words for adapter in adapters for name, words in adapter.spoken.items()}
    return Merged("+".join(spoken), edits, spoken)


def _exact(tensor: Tensor) -> Tensor:
    """In double precision, on the CPU, because not every device has it."""
    return tensor.detach().cpu().double()


def _concept_states(base: Base, adapter: KeysAndValuesAdapter) -> Tensor:
    """Text states [n, C] of a prompt from the concept's first token to the end token."""
    conditioning = base.encode([f"a photo of a <{adapter.concept_name}>"], {adapter.concept_name: adapter.words})
    read = TextReader(base, [adapter.word()]).read(conditioning)
    first = min(conditioning.concept_tokens[0][adapter.concept_name])
    return read.text_states[0, first : sentence_ends(base, read.token_ids)[0]]


def keys_and_values(base: Base) -> dict[str, Tensor]:
    layers = cross_attentions(bare(base.network)).items()
    return {f"{path}.{name}.weight": getattr(layer, name).weight for path, layer in layers for name in ("to_k", "to_v")}
