"""A prompt with <concepts> -> the text the model reads, and where in its tokens each concept stands."""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from infusion.errors import UserError, nearest

_PLACEHOLDER = re.compile(r"<([^<>|\s]+)>")

TEMPLATES = (
    "a {}",
    "the {}",
    "{}",
    "a photo of a {}",
    "a photo of the {}",
    "a good photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "the photo of a {}",
    "a close-up photo of a {}",
    "a rendition of a {}",
)
"""Training prompts, in the manner of the paper's: the subject and nothing else."""


def class_prompt(class_noun: str) -> str:
    """What the base is asked for where its own view of a class is wanted: to be preserved, or to be measured."""
    return f"a photo of a {class_noun}"


class Mention(NamedTuple):
    """Characters [start, end) of a prompt's text are the class noun of `concept`."""

    concept: str
    start: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """`text` is what the text model reads: every placeholder has become its class noun."""

    text: str
    mentions: tuple[Mention, ...]


def parse_prompt(text: str, class_nouns: Mapping[str, str], own_tokens: Collection[str] = ()) -> Prompt:
    """Replace every `<name>` by the class noun of the concept called `name`, and remember where.

    Args:
        text: for example "a <my-cat> next to a cat".
        class_nouns: class noun by concept name.
        own_tokens: words in angle brackets that the tokenizer itself knows; they stay as they are.

    Raises:
        UserError: a placeholder names no loaded concept.
    """
    text = unicodedata.normalize("NFC", text)  # as CLIP's tokenizer does before it counts characters
    parts: list[str] = []
    mentions: list[Mention] = []
    length = read = 0
    for match in _PLACEHOLDER.finditer(text):
        name = match[1]
        if match[0] in own_tokens:
            continue
        if name not in class_nouns:
            known = ", ".join(f"<{other}>" for other in class_nouns) or "none"
            hint = nearest(name, list(class_nouns))
            raise UserError(f'The prompt "{text}" names <{name}>, but the concepts loaded are: {known}.{hint}')
        parts += [text[read : match.start()], class_nouns[name]]
        start = length + match.start() - read
        mentions.append(Mention(name, start, start + len(class_nouns[name])))
        length, read = mentions[-1].end, match.end()
    parts.append(text[read:])
    return Prompt("".join(parts), tuple(mentions))


def name_concept(caption: str, placeholder: str, class_noun: str) -> str:
    """A training caption in which the concept is named by its placeholder.

    A caption that does not hold the placeholder has the first whole-word occurrence of the class noun replaced.

    Raises:
        UserError: the caption holds neither.
    """
    if placeholder in caption:
        return caption
    named, count = re.subn(rf"\b{re.escape(class_noun)}\b", placeholder, caption, count=1, flags=re.IGNORECASE)
    if not count:
        raise UserError(
            f'The caption "{caption}" holds neither {placeholder} nor the class noun "{class_noun}"; '
            "write one of them where the subject is named."
        )
    return named


ConceptTokens = Mapping[str, tuple[int, ...]]
"""Token positions by concept name, for one row of a batch."""


def tokenize(
    tokenizer: Any, prompts: Sequence[Prompt], max_length: int | None = None
) -> tuple[Any, list[ConceptTokens]]:
    """Token ids padded to one length, and each prompt's concept tokens: all pieces of every mention.

    Args:
        max_length: the tokenizer's own by default.

    Raises:
        UserError: a concept stands beyond the text model's last token, or its noun has no token.
    """
    limit = max_length or tokenizer.model_max_length
    encoded = tokenizer(
        [prompt.text for prompt in prompts],
        padding="max_length",
        padding_side="right",
        max_length=limit,
        truncation=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    offsets = encoded.pop("offset_mapping").tolist()
    return encoded, [_concept_tokens(prompt, spans, limit) for prompt, spans in zip(prompts, offsets, strict=True)]


def _concept_tokens(prompt: Prompt, offsets: Sequence[Sequence[int]], limit: int) -> ConceptTokens:
    positions: dict[str, tuple[int, ...]] = {}
    for concept, start, end in prompt.mentions:
        inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
        covered = max((offsets[i][1] for i in inside), default=start)
        if covered < end:
            raise UserError(
                f'In "{prompt.text}" the concept <{concept}> stands beyond the {limit} tokens this text model reads; '
                "shorten the prompt or move the concept forward."
            )
        positions[concept] = positions.get(concept, ()) + tuple(inside)
    return positions
