"""Scene -> caption: a small grammar with paraphrases and omissions."""

import random
import re
from typing import NamedTuple

from infusion.toybox.scene import COLORS, PATTERNS, STYLES, Scene, Toy

PLACES: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "on a beach", "at the beach"),
    "forest": ("in the forest", "in a forest"),
    "snow": ("in the snow", "on the snow"),
    "desert": ("in the desert", "in a desert"),
    "night sky": ("under the night sky", "under the stars", "in the night sky"),
    "wooden floor": ("on a wooden floor", "on the wooden floor"),
    "brick wall": ("in front of a brick wall", "by a brick wall"),
    "water": ("in the water", "on the water"),
    "meadow": ("in a meadow", "on the meadow"),
    "checkered floor": ("on a checkered floor", "on checkered tiles"),
}
HOURS: dict[str, tuple[str, ...]] = {
    "sunset": ("at sunset", "at dusk"),
    "night": ("at night", "by night"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "large": ("large", "big", "huge"),
}
FRAMES: dict[str, tuple[str, ...]] = {
    "photo": ("{}", "{}", "{}", "a photo of {}", "a photo of {}", "a picture of {}", "an image of {}"),
    "sketch": ("a sketch of {}", "a pencil sketch of {}", "{}, pencil sketch"),
    "cartoon": ("a cartoon of {}", "a cartoon drawing of {}", "{}, cartoon"),
    "watercolor": ("a watercolor of {}", "a watercolor painting of {}", "{}, watercolor"),
}
_RARE_WORDS = ("sks", "zwx", "ohwx", "qjb")
_MIRRORED = {"left of": "right of", "right of": "left of"}
_RELATION_WORDS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "next to": ("next to", "beside", "and"),
    "on top of": ("on top of", "standing on"),
}
_NUMBERS = {2: "two", 3: "three"}


def article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def plural(class_noun: str) -> str:
    irregular = {"fish": "fish", "snowman": "snowmen"}
    return irregular.get(class_noun, class_noun + "s")


def _wearing(toy: Toy, rng: random.Random) -> str:
    accessory = toy.accessory
    if accessory is None or rng.random() > 0.75:
        return ""
    colored = accessory.kind != "crown" and rng.random() < 0.6
    worn = f"{accessory.color_name} {accessory.kind}" if colored else accessory.kind
    return f" {'wearing' if rng.random() < 0.7 else 'with'} {article(worn)} {worn}"


def _noun_phrase(toy: Toy, rng: random.Random, brief: bool = False) -> str:
    """`brief`: colour and noun only, for captions that have more than one toy to tell of."""
    words = []
    if rng.random() < 0.001:
        words.append(rng.choice(_RARE_WORDS))
    if toy.size_name != "medium" and not brief and rng.random() < 0.75:
        words.append(rng.choice(SIZE_WORDS[toy.size_name]))
    if rng.random() < 0.7:
        words.append(toy.color_name)
    pattern = toy.individual.pattern.kind
    if pattern not in ("plain", "gradient") and not brief and rng.random() < 0.5:
        words.append(pattern)
    words.append(toy.individual.class_noun)
    phrase = " ".join(words)
    phrase = f"{'the' if rng.random() < 0.1 else article(phrase)} {phrase}"
    return phrase if brief else phrase + _wearing(toy, rng)


def _group_phrase(scene: Scene, rng: random.Random) -> str:
    """ "two cats", "three red cats": for toys of one class; a colour only if it is everybody's."""
    colors = {toy.color_name for toy in scene.toys}
    color = f"{colors.pop()} " if len(colors) == 1 and rng.random() < 0.7 else ""
    return f"{_NUMBERS[len(scene.toys)]} {color}{plural(scene.toys[0].individual.class_noun)}"


def _subject(scene: Scene, rng: random.Random, mirrored: bool) -> str:
    toys = list(scene.toys)
    if len(toys) == 1:
        return _noun_phrase(toys[0], rng)
    of_one_class = len({toy.individual.class_noun for toy in toys}) == 1
    if of_one_class and rng.random() < 0.6:
        return _group_phrase(scene, rng)
    if scene.relation is None:
        first, *others = [_noun_phrase(toy, rng, brief=True) for toy in (reversed(toys) if mirrored else toys)]
        return f"{first}, {others[0]} and {others[1]}"
    relation = _MIRRORED.get(scene.relation, scene.relation) if mirrored else scene.relation
    first, other = _noun_phrase(toys[0], rng), _noun_phrase(toys[1], rng, brief=True)
    return f"{first} {rng.choice(_RELATION_WORDS[relation])} {other}"


def caption(scene: Scene, rng: random.Random, mirrored: bool = False) -> str:
    """A sentence that is true of the scene; what it says and leaves out is drawn from `rng`.

    `mirrored`: the picture is shown flipped left to right.
    """
    phrase = _subject(scene, rng, mirrored)
    if rng.random() < 0.85:
        phrase += f" {rng.choice(PLACES[scene.background])}"
    hour_is_told = scene.background == "night sky"
    if scene.time in HOURS and rng.random() < (0.2 if hour_is_told else 0.85):
        phrase += f" {rng.choice(HOURS[scene.time])}"
    frame = "{}" if rng.random() < 0.05 else rng.choice(FRAMES[scene.style])
    return frame.format(phrase)


class Mention(NamedTuple):
    """Where a caption speaks of toys: characters of colour, pattern and noun together, and of the noun alone."""

    phrase: tuple[int, int]
    noun: tuple[int, int]
    toys: tuple[int, ...]  # their numbers in the scene; several for "two cats"


def mentions(scene: Scene, text: str, mirrored: bool = False) -> list[Mention]:
    """Which words of a caption of the scene stand for which toys."""
    found = []
    order = list(range(len(scene.toys)))
    if scene.relation is None and mirrored:
        order.reverse()
    for noun in dict.fromkeys(toy.individual.class_noun for toy in scene.toys):
        toys = [number for number in order if scene.toys[number].individual.class_noun == noun]
        words = rf"\b((?:(?:{'|'.join(COLORS)}) )?(?:(?:{'|'.join(PATTERNS)}) )?)({noun}|{plural(noun)})\b"
        matches = list(re.finditer(words, text))
        named = [(number,) for number in toys] if len(matches) == len(toys) else [tuple(toys)] * len(matches)
        found += [Mention(m.span(), m.span(2), who) for m, who in zip(matches, named, strict=True)]
    return found


def told_facts(scene: Scene, text: str) -> set[str]:
    """Which facts of its scene a caption tells: of class, color, size, accessory, background, time, style, relation.

    Of several toys, those of the first.
    """

    def says(words: str) -> bool:
        return re.search(rf"\b{words}\b", text) is not None

    first = scene.toys[0]
    phrases = [text[slice(*mention.phrase)] for mention in mentions(scene, text) if 0 in mention.toys]
    relations = [words for words in _RELATION_WORDS.get(scene.relation or "", ()) if words != "and"]
    found = {
        "class": True,
        "color": any(first.color_name in phrase.split() for phrase in phrases),
        "size": any(says(word) for word in SIZE_WORDS.get(first.size_name, ())),
        "accessory": first.accessory is not None and says(first.accessory.kind),
        "background": any(says(place) for place in PLACES[scene.background]),
        "time": any(says(hour) for hour in HOURS.get(scene.time, ())),
        "style": any(says(style) for style in STYLES),
        "relation": any(says(words) for words in relations),
    }
    return {name for name, is_told in found.items() if is_told}
