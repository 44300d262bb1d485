"""Conditioning + learned token vectors -> conditioning in which the text model has read them.

The vectors stand in for the text model's input embeddings at the tokens that name a concept; the vocabulary is not
touched. Rows that name no concept keep their states, to the bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infusion.base.cross_attention import cross_attentions
from infusion.base.denoiser import Conditioning
from infusion.base.edits import all_or_nothing, hook_input, hook_output
from infusion.errors import UserError

if TYPE_CHECKING:
    from infusion.base.customization import Customized
    from infusion.base.model import Base

ALL_LAYERS = ""


@dataclass(frozen=True)
class TokenVectors:
    """The edit of one concept: embeddings of the tokens that name it.

    words: what a prompt reads where it names the concept, n tokens. vectors: [n, width] for these, by the path of the
    cross-attention layer that reads them; under `ALL_LAYERS` for every layer that has none of its own.
    """

    concept: str
    words: str
    vectors: Mapping[str, Tensor]

    @contextmanager
    def attach(self, live: "Customized") -> Iterator[None]:
        live.vectors.append(self)
        yield

    def scaled(self, weight: float) -> "TokenVectors":
        raise all_or_nothing(weight)


class TextReader:
    """Lets the text model of `base` read rows that name concepts with the concepts' own token vectors.

    Outside of training what was read last is kept, because a sampler gives the same conditioning at every step.
    """

    def __init__(self, base: "Base", edits: Sequence[TokenVectors]) -> None:
        self.base = base
        self.edits = {edit.concept: edit.vectors for edit in edits}
        self.token_ids = {e.concept: base.tokenizer(e.words, add_special_tokens=False).input_ids for e in edits}
        self._last: tuple[Conditioning, Conditioning] | None = None
        self._by_layer: Mapping[str, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator["TextReader"]:
        """Within the block, layers with states of their own are given those of the conditioning read last."""
        paths = {path for vectors in self.edits.values() for path in vectors} - {ALL_LAYERS}
        layers = cross_attentions(self.base.network) if paths else {}
        with ExitStack() as stack:
            for path in paths:
                for projection in (layers[path].to_k, layers[path].to_v):
                    stack.enter_context(hook_input(projection, partial(self._own_states, path)))
            yield self

    def _own_states(self, path: str, states: Tensor) -> Tensor:
        return self._by_layer.get(path, states)

    def read(self, conditioning: Conditioning) -> Conditioning:
        """The conditioning with the states that follow from the concepts' vectors."""
        if self._last and self._last[0] is conditioning and not torch.is_grad_enabled():
            found = self._last[1]
        else:
            found = self._read(conditioning)
            self._last = (conditioning, found)
        self._by_layer = found.states_by_layer
        return found

    def give_by_layer(self, states: Mapping[str, Tensor]) -> None:
        """From here on layers with states of their own are given these, [B, T, C] of the whole batch by layer path."""
        self._by_layer = states

    def _read(self, conditioning: Conditioning) -> Conditioning:
        named = [row for row, tokens in enumerate(conditioning.concept_tokens) if tokens.keys() & self.edits.keys()]
        if not named:
            return conditioning
        rows, at = conditioning.rows(named), torch.tensor(named, device=conditioning.text_states.device)
        self._check_spelling(rows)
        states: dict[str, Tensor] = {}
        for path in sorted({path for vectors in self.edits.values() for path in vectors}):
            with hook_output(self.base.text_encoder.get_input_embeddings(), partial(self._with_vectors, rows, path)):
                read = self.base.read_tokens(rows.token_ids, rows.attention_mask)
            states[path] = conditioning.text_states.index_copy(0, at, read)
        shared = states.pop(ALL_LAYERS, conditioning.text_states)
        return replace(conditioning, text_states=shared, states_by_layer=states)

    def _check_spelling(self, rows: Conditioning) -> None:
        """Every mention must be the concept's own tokens, for which there are vectors."""
        for ids, tokens in zip(rows.token_ids.tolist(), rows.concept_tokens, strict=True):
            for concept in tokens.keys() & self.edits.keys():
                own, there = self.token_ids[concept], [ids[at] for at in tokens[concept]]
                if there != own * (len(there) // len(own)):
                    raise UserError(
                        f"A prompt names <{concept}> within a longer word, for which it has no vectors: leave a space "
                        "on both sides of it."
                    )

    def _with_vectors(self, rows: Conditioning, path: str, embeddings: Tensor) -> Tensor:
        """embeddings [B, T, width], with the vectors of every concept at its tokens, mention by mention."""
        for row, tokens in enumerate(rows.concept_tokens):
            for concept in tokens.keys() & self.edits.keys():
                vectors = self.edits[concept].get(path, self.edits[concept].get(ALL_LAYERS))
                if vectors is None:
                    continue
                at = torch.tensor(tokens[concept], device=embeddings.device)
                mentions = vectors.repeat(len(at) // len(vectors), 1)
                embeddings = embeddings.index_put((torch.full_like(at, row), at), mentions.to(embeddings))
        return embeddings
