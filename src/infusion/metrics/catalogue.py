"""The catalogue of measures: what each number is, which way is good, and how it is to be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BASE, NULL = "base", "null"
"""Rows of every comparison that are no methods: the base itself, and the base with other seeds."""
NOT_METHODS = (BASE, NULL)
REFERENCE = "infusion"
"""The row that the others are held against, where it is there."""
ROUNDING = 1e-9  # a float32 prediction computed in another batch differs by some 1e-6, its square by 1e-12


@dataclass(frozen=True)
class Measure:
    """What one number is. better: which way is good; None where neither is. is_share: it lies between 0 and 1."""

    name: str
    label: str
    sentence: str
    better: Literal["higher", "lower"] | None
    group: str
    is_share: bool = False


FIDELITY, FACTS = "fidelity", "facts"
SPECIFIC, AGNOSTIC, RELATIVE, KL = "concept-specific", "concept-agnostic", "relative divergence", "KL divergence"
_PROBES = {
    "s1": ("S1 unrelated", "prompts without the concept and without its class"),
    "s2": ("S2 siblings", "prompts with sibling classes"),
    "s3": ("S3 class noun", "prompts with the class noun, the concept off"),
    "s4": ("S4 other content", "prompts with the concept in other content, measured outside the subject"),
}


def fact_measure(kind: str, words: str) -> Measure:
    """The measure of one kind of fact, told by `words`."""
    sentence = f"Share of prompts whose {words} judges see in the picture."
    return Measure(f"facts_{kind}", words, sentence, "higher", FACTS, is_share=True)


MEASURES = (
    Measure(
        "identity",
        "identity",
        "Where the pictures stand between 0, the base model's pictures of the class noun from the same prompts, and "
        "1, other real pictures of the individual; above 1 is copying, not quality.",
        "higher",
        FIDELITY,
    ),
    Measure(
        "text_alignment",
        "text alignment",
        "Cosine between a picture and its prompt, by CLIP.",
        "higher",
        FIDELITY,
    ),
    Measure(
        "image_alignment",
        "image alignment",
        "Cosine between a picture and the training pictures, raw: a copy scores highest, so neither way is called "
        "better.",
        None,
        FIDELITY,
    ),
    Measure(
        "facts",
        "facts",
        "Share of what the prompt asks for that judges see in the picture.",
        "higher",
        FIDELITY,
        is_share=True,
    ),
    *(
        fact_measure(kind, words)
        for kind, words in (
            ("class", "class"),
            ("background", "background"),
            ("style", "style"),
            ("time", "time of day"),
            ("second", "second toy"),
        )
    ),
    Measure(
        "w2_gaussian",
        "W2 Gaussian",
        "Wasserstein distance, both sides taken as Gaussian, of the pictures' features to those of the base model's "
        "pictures of the class noun, same prompts and seeds.",
        "lower",
        SPECIFIC,
    ),
    Measure(
        "w2_exact",
        "W2 exact",
        "Wasserstein distance of the same features by exact assignment of picture to picture.",
        "lower",
        SPECIFIC,
    ),
    Measure(
        "w2_sliced",
        "W2 sliced",
        "Wasserstein distance of the same features, averaged over one-dimensional views.",
        "lower",
        SPECIFIC,
    ),
    Measure(
        "w2_background",
        "W2 background",
        "Wasserstein distance of what is around the subject to the base model's: the background that the concept "
        "brings along.",
        "lower",
        SPECIFIC,
    ),
    Measure(
        "w2_layout",
        "W2 layout",
        "Wasserstein distance of where the subject stands and how large it is, in the pictures where it is found, to "
        "the base model's layouts.",
        "lower",
        SPECIFIC,
    ),
    Measure(
        "subject_found",
        "subject found",
        "Share of pictures in which the judges see the subject at all: where it is low, background and layout say "
        "little.",
        None,
        SPECIFIC,
        is_share=True,
    ),
    Measure(
        "w2_style", "W2 style", "Wasserstein distance of the pictures' style to the base model's.", "lower", SPECIFIC
    ),
    Measure(
        "collapse",
        "collapse",
        "Distance to the training pictures over the base model's distance to them: small means copying, and some "
        "approach is what learning is, so neither way is called better.",
        None,
        SPECIFIC,
    ),
    Measure(
        "copied",
        "copied",
        "Share of pictures nearer to a training picture than other real pictures ever are.",
        "lower",
        SPECIFIC,
        is_share=True,
    ),
    *(
        Measure(
            f"lfd_{probe}",
            label,
            f"Latent Fisher divergence on {where}: how far the predicted noise moved from the base model's, mean of "
            "squares per element.",
            "lower",
            AGNOSTIC,
        )
        for probe, (label, where) in _PROBES.items()
    ),
    Measure(
        "class_diversity",
        "class diversity",
        "Mean distance among pictures of the plain class noun, over the base model's: below 1 the class has collapsed.",
        "higher",
        AGNOSTIC,
    ),
    Measure(
        "class_leak",
        "class leak",
        "Identity of pictures of the plain class noun: above 0 the concept has hijacked its class.",
        "lower",
        AGNOSTIC,
    ),
    *(
        Measure(
            f"lfd_{probe}_relative",
            f"{label}, relative",
            f"The divergence on {where}, over how far the base model's prediction moves when the prompt is left out.",
            "lower",
            RELATIVE,
        )
        for probe, (label, where) in _PROBES.items()
    ),
    *(
        Measure(
            f"lfd_{probe}_kl",
            f"{label}, KL weight",
            f"The divergence on {where}, weighted to bound the Kullback-Leibler divergence, up to the terminal term.",
            "lower",
            KL,
        )
        for probe, (label, where) in _PROBES.items()
    ),
)
PAIR_MEASURES = (
    Measure("both_present", "both present", "Share of pictures that show both concepts.", "higher", "pairs", True),
    Measure(
        "identity_own",
        "own identity",
        "Likeness of each subject to its own concept, where both are there.",
        "higher",
        "pairs",
    ),
    Measure(
        "identity_other",
        "other's identity",
        "Likeness of each subject to the other concept, where both are there.",
        "lower",
        "pairs",
    ),
    Measure(
        "leak",
        "leak",
        "Likeness to the other concept, less what real pictures, cut out likewise, have of it.",
        "lower",
        "pairs",
    ),
)

AUDIT_MEASURES = (
    Measure(
        "recalled",
        "recalled",
        "Of pictures drawn from the words for the subject alone, without guidance, the share that is a training "
        "picture over again, pixel by pixel: nearer than half of what two training pictures differ by.",
        "lower",
        SPECIFIC,
        is_share=True,
    ),
)
"""Of an audit alone."""

BY_NAME: Mapping[str, Measure] = {measure.name: measure for measure in (*MEASURES, *AUDIT_MEASURES)}


def measure_of(name: str) -> Measure:
    """What a number is; a fact that only a person's own prompts ask for is told by its name."""
    kind = name.removeprefix("facts_").replace("_", " ")
    return BY_NAME.get(name) or fact_measure(name.removeprefix("facts_"), kind)


# What a model that was not changed has, whatever the individual.
UNCHANGED = {name: 0.0 for name in BY_NAME if name.startswith("lfd_")} | {"class_diversity": 1.0, "class_leak": 0.0}
NOTES: Mapping[str, str] = {
    AGNOSTIC: (
        "S1, S2 and S3 are exactly 0 by construction for methods that act on their own token alone: a correctness "
        "test, not a win. S4 is the one that tells. The divergence is a distance of scores and is not calibrated to "
        "marginal quality: read it beside the distances of pictures."
    ),
    SPECIFIC: "Not learning is the optimum of every distance to the base model: read the distances beside identity.",
}
"""How the measures of a group are to be read."""


def arrow(measure: Measure) -> str:
    """Which way is good."""
    return {"higher": " ↑", "lower": " ↓", None: ""}[measure.better]
