"""Scene -> caption: a small grammar with paraphrases and omissions."""

import random

from infusion.toybox.scene import Scene, Toy

PLACES: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "on a beach", "at the beach"),
    "forest": ("in the forest", "in a forest"),
    "snow": ("in the snow", "on the snow"),
    "desert": ("in the desert", "in a desert"),
    "night sky": ("under the night sky", "at night", "in the night sky"),
    "wooden floor": ("on a wooden floor", "on the wooden floor"),
    "brick wall": ("in front of a brick wall", "by a brick wall"),
    "water": ("in the water", "on the water"),
    "meadow": ("in a meadow", "on the meadow"),
    "checkered floor": ("on a checkered floor", "on checkered tiles"),
}
_FRAMES = (
    "{}",
    "{}",
    "a photo of {}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a good photo of {}",
)
_RARE_WORDS = ("sks", "zwx", "ohwx", "qjb")
_MIRRORED = {"left of": "right of", "right of": "left of", "next to": "next to"}
_RELATION_WORDS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "next to": ("next to", "beside", "and"),
}


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _noun_phrase(toy: Toy, rng: random.Random) -> str:
    words = []
    if rng.random() < 0.001:
        words.append(rng.choice(_RARE_WORDS))
    if rng.random() < 0.7:
        words.append(toy.color_name)
    pattern = toy.individual.pattern.kind
    if pattern not in ("plain", "gradient") and rng.random() < 0.5:
        words.append(pattern)
    words.append(toy.individual.class_noun)
    phrase = " ".join(words)
    return f"{'the' if rng.random() < 0.1 else _article(phrase)} {phrase}"


def caption(scene: Scene, rng: random.Random, mirrored: bool = False) -> str:
    """A sentence that is true of the scene; what it says and leaves out is drawn from `rng`.

    `mirrored`: the picture is shown flipped left to right.
    """
    phrase = _noun_phrase(scene.toys[0], rng)
    if scene.relation is not None:
        relation = _MIRRORED[scene.relation] if mirrored else scene.relation
        phrase += f" {rng.choice(_RELATION_WORDS[relation])} {_noun_phrase(scene.toys[1], rng)}"
    if rng.random() < 0.85:
        phrase += f" {rng.choice(PLACES[scene.background])}"
    return rng.choice(_FRAMES).format(phrase)
