"""A base -> the text states it usually reads: what closed-form methods measure their own directions against."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from infusion.base.model import Base

_PROMPT = "a photo of a {}"
_MAX_WORDS = 4000
_AT_ONCE = 128
_RIDGE = 1e-3  # of the mean of the diagonal


_METRICS: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()  # by text model, for as long as that is there


def text_metric(base: Base) -> Tensor:
    """C^-1 [C, C] of the text states that prompts usually have: what closed-form methods measure with."""
    if base.text_encoder not in _METRICS:
        _METRICS[base.text_encoder] = inverse_second_moment(typical_states(base))
    return _METRICS[base.text_encoder]


@torch.no_grad()
def typical_states(base: Base) -> Tensor:
    """States [R, C] of "a photo of a ..." with every whole word of the vocabulary, from start token to end token.

    Stands in for a corpus of captions, which a base does not bring with it. Of a large vocabulary, at most 4,000 words
    are taken at equal steps.
    """
    tokens = sorted(base.tokenizer.get_vocab())
    words = [token.removesuffix("</w>") for token in tokens if token.endswith("</w>")]
    words = [word for word in words if word.isalpha()]
    words = words[:: max(1, -(-len(words) // _MAX_WORDS))]
    found = []
    for first in range(0, len(words), _AT_ONCE):
        conditioning = base.encode([_PROMPT.format(word) for word in words[first : first + _AT_ONCE]])
        ends = sentence_ends(base, conditioning.token_ids)
        found += [states[:end] for states, end in zip(conditioning.text_states, ends, strict=True)]
    return torch.cat(found).float()


def inverse_second_moment(states: Tensor) -> Tensor:
    """(E[e e^T] + ridge)^-1 of states [R, C]: [C, C]. The ridge keeps it finite where states span less than C.

    Worked out in double precision, on the CPU, because not every device has it.
    """
    exact = states.cpu().double()
    moment = exact.T @ exact / len(exact)
    ridge = _RIDGE * moment.diagonal().mean() * torch.eye(len(moment))
    return torch.linalg.inv(moment + ridge).to(states)


def sentence_ends(base: Base, token_ids: Tensor) -> list[int]:
    """Position after the first end token of every row of token_ids [B, T]."""
    return ((token_ids == base.tokenizer.eos_token_id).int().argmax(dim=1) + 1).tolist()
