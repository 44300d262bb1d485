"""A class noun, a file of prompts -> what is drawn and asked of one customized model when nothing else is said."""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from infusion.errors import UserError, all_at_once, nearest
from infusion.metrics.facts import FACTS
from infusion.settings import setting, validate
from infusion.toybox.scene import CLASSES


@dataclass(frozen=True)
class Wanted:
    """A prompt, {} for the concept, and the facts it asks for, by the names of `metrics.FACTS`."""

    text: str
    facts: Mapping[str, str | int]


@dataclass(frozen=True)
class Drawing:
    """How much is drawn and asked: the part of a plan that a person sets."""

    num_seeds: int = setting(8, help="Images of every prompt.", minimum=1, maximum=1000)
    num_class_pictures: int = setting(32, help="Images of the plain class noun.", minimum=3, maximum=1000)
    num_inference_steps: int = setting(6, help="Steps of DPM-Solver++.", minimum=1, maximum=1000)
    guidance_scale: float = setting(5.0, help="Classifier-free guidance; 1 is none.", minimum=0)
    latents_per_prompt: int = setting(1, help="Latents of the latent Fisher divergence.", minimum=1, maximum=1000)
    num_timesteps: int = setting(5, help="Timesteps of the latent Fisher divergence.", minimum=1, maximum=1000)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Plan:
    """What is drawn and what is asked, of every model alike.

    prompts: with the concept, and with the class noun in its place. unrelated, siblings: prompts of S1 and S2, without
    concept and class noun.
    """

    prompts: tuple[Wanted, ...]
    unrelated: tuple[str, ...]
    siblings: tuple[str, ...]
    drawing: Drawing = field(default_factory=Drawing)

    @property
    def prompt_of(self) -> np.ndarray:
        """[N] number of the prompt of every image: for each prompt, one image per seed."""
        return np.repeat(np.arange(len(self.prompts)), self.drawing.num_seeds)


_QUICK = (0, 1, 3, 6, 8, 10)  # of PROMPTS: three places, an hour and two styles
PROMPTS = tuple(
    Wanted(text, {"background": background, "style": style})
    for text, background, style in (
        ("a {} on the beach", "beach", "photo"),
        ("a {} in the snow", "snow", "photo"),
        ("a {} in the forest", "forest", "photo"),
        ("a {} in front of a brick wall", "brick wall", "photo"),
        ("a {} on a wooden floor", "wooden floor", "photo"),
        ("a {} in a meadow", "meadow", "photo"),
        ("a {} in the water", "water", "photo"),
        ("a {} in the desert", "desert", "photo"),
        ("a sketch of a {} in the forest", "forest", "sketch"),
        ("a sketch of a {} on the beach", "beach", "sketch"),
        ("a cartoon of a {} in the snow", "snow", "cartoon"),
        ("a watercolor of a {} in a meadow", "meadow", "watercolor"),
    )
)
"""Places and styles that any subject can be asked in; the facts are for the toybox's judges."""

_UNRELATED = (
    "a car on the beach",
    "a red mushroom in the forest",
    "an airplane in the snow",
    "a blue car in front of a brick wall",
    "a sketch of a robot in the desert",
    "a teapot on a wooden floor",
    "a cartoon of a hot air balloon in a meadow",
    "a snowman under the night sky",
)
_OF_SIBLINGS = ("a {} on the beach", "a {} in the snow", "a sketch of a {} in the forest")
_KINDS = (
    ("cat", "dog", "rabbit", "fox", "bear", "elephant", "turtle", "horse"),
    ("duck", "penguin", "owl", "parrot"),
    ("person", "man", "woman", "child"),
    ("car", "airplane", "hot air balloon", "bus", "bicycle", "boat"),
    ("teddy bear", "robot", "snowman", "doll", "toy"),
    ("teapot", "mushroom", "vase", "cup", "bowl", "clock"),
    ("backpack", "shoe", "hat", "dress"),
    ("chair", "table", "lamp"),
)
"""Common nouns by kind: the siblings of one are the others of its kind, then the first of every other kind."""
_NUM_SIBLINGS = 3
_DRAWN_ELSEWHERE = Drawing(num_inference_steps=20, guidance_scale=7.5)


def plan_for(
    class_noun: str, toybox: bool, quick: bool, num_seeds: int | None = None, prompts: Sequence[Wanted] | None = None
) -> Plan:
    """What is drawn and asked of a concept of a class.

    Args:
        toybox: whether the base is the embedded one: it draws in fewer steps and knows fewer nouns.
        quick: half the prompts and an eighth of the images; intervals become wide.
        prompts: in the place of `PROMPTS`.
    """
    drawing = Drawing() if toybox else _DRAWN_ELSEWHERE
    if quick:
        drawing = replace(drawing, num_seeds=2, num_class_pictures=8, num_timesteps=3)
    if num_seeds:
        drawing = replace(drawing, num_seeds=num_seeds)
    siblings = siblings_of(class_noun, CLASSES if toybox else None)
    own = [replace(prompt, text=_with_article(prompt.text, class_noun)) for prompt in PROMPTS]
    return Plan(
        prompts=tuple(prompts or ([own[n] for n in _QUICK] if quick else own)),
        unrelated=tuple(text for text in _UNRELATED if not any(_says(text, n) for n in (class_noun, *siblings))),
        siblings=tuple(
            _with_article(text, noun).format(noun) for noun in siblings for text in _OF_SIBLINGS[: 1 if quick else None]
        ),
        drawing=drawing,
    )


def _with_article(text: str, noun: str) -> str:
    """ "a {}" as it is said before a noun: "an {}" before "elephant" and what stands for one."""
    return re.sub(r"\ba \{\}", "an {}", text) if re.match("[aeio]|u(?!ni)", noun, re.IGNORECASE) else text


def siblings_of(class_noun: str, known: Collection[str] | None = None, num: int = _NUM_SIBLINGS) -> list[str]:
    """Nouns alike: those of the class noun's kind first, and none that the class noun says itself.

    Args:
        known: only these nouns.
    """
    named = [noun for kind in _KINDS for noun in kind if _says(class_noun, noun)]
    own = next((kind for kind in _KINDS if named and max(named, key=len) in kind), ())  # "teddy bear" is no bear
    found = dict.fromkeys([*own, *(kind[0] for kind in _KINDS), *(noun for kind in _KINDS for noun in kind)])
    apart = [noun for noun in found if not _says(class_noun, noun) and not _says(noun, class_noun)]
    return [noun for noun in apart if known is None or noun in known][:num]


def _says(text: str, words: str) -> bool:
    return re.search(rf"\b{re.escape(words)}\b", text, re.IGNORECASE) is not None


# ------------------------------------------------------------------------------------------------- a file of prompts


def read_prompts(path: Path, class_noun: str | None = None) -> tuple[Wanted, ...]:
    """Prompts of a text file, one a line, or of a TOML file with [[prompts]] of text and facts.

    Args:
        class_noun: of the concept, where it is known.

    Raises:
        UserError: it cannot be read, has fewer than two prompts, a prompt without {}, or unknown keys or facts.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot read the prompts in {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not a text file; write one prompt a line.") from error
    tables = _tables(path, text) if path.suffix.lower() == ".toml" else [{"text": line} for line in _lines(text)]
    mistakes = [mistake for number, table in enumerate(tables, 1) for mistake in _mistakes(number, table, class_noun)]
    if len(tables) < 2:
        given = "no prompt" if not tables else "one prompt"
        mistakes.append(f"{path} has {given}; intervals are over prompts and need two or more, better ten.")
    if mistakes:
        raise all_at_once(mistakes, str(path))
    return tuple(Wanted(table["text"], {k: v for k, v in table.items() if k != "text"}) for table in tables)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _tables(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        told = tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not a TOML file: {error}.") from error
    mistakes = [
        f'Unknown key "{key}" in {path}.{nearest(key, ["prompts"])} There is: prompts.'
        for key in told
        if key != "prompts"
    ]
    if mistakes:
        raise all_at_once(mistakes, str(path))
    prompts = told.get("prompts", [])
    tables = [{"text": one} if isinstance(one, str) else one for one in prompts] if isinstance(prompts, list) else []
    if not all(isinstance(table, dict) for table in tables) or not isinstance(prompts, list):
        raise UserError(f'The prompts in {path} must be a list of texts, or [[prompts]] with text = "a {{}} in ...".')
    return tables


def _mistakes(number: int, table: Mapping[str, Any], class_noun: str | None) -> list[str]:
    """What is wrong with one prompt and the facts it asks for."""
    text, facts = table.get("text"), {key: value for key, value in table.items() if key != "text"}
    if not isinstance(text, str):
        return [f'Prompt {number} has no text = "a {{}} on the beach".']
    mistakes = []
    if text.count("{}") != 1 or set("{}<>") & set(text.replace("{}", "")):
        mistakes.append(f'The prompt "{text}" must have {{}} once, where the concept is named, and no other {{ }} < >.')
    options = [fact for fact in FACTS if fact != "class"]  # the class is the concept's
    for fact, value in facts.items():
        if fact not in options:
            mistakes.append(
                f'The prompt "{text}" asks for "{fact}".{nearest(fact, options)} There are: {", ".join(options)}.'
            )
        elif value not in FACTS[fact]:
            known = [str(option) for option in FACTS[fact]]
            mistakes.append(
                f'In the prompt "{text}" no {fact} is "{value}".{nearest(str(value), known)} '
                f"There are: {', '.join(known)}."
            )
    if "relation" in facts and "second" not in facts:
        mistakes.append(f'The prompt "{text}" asks for a relation, and needs second = "..." beside it.')
    if class_noun is not None and facts.get("second") == class_noun:
        mistakes.append(f'The prompt "{text}" asks for a second "{class_noun}"; ask for count = 2.')
    return mistakes
