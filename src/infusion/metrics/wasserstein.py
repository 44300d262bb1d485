"""Images of two models, same prompts -> how far apart they lie, and what of it is background, layout and style."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from infusion.intervals import Figure
from infusion.metrics.distances import exact_w2, gaussian_w2, layout, layout_w2, sliced_w2, style_features
from infusion.metrics.encoders import Clip
from infusion.metrics.metric import SPECIFIC, Evidence, Images, Measure, Metric, Need
from infusion.metrics.prompts import mean_over_prompts, over_prompts
from infusion.metrics.two_samples import chance

STYLE_SENTENCES = ("a photo", "a sketch", "a cartoon", "a watercolor")


@dataclass(frozen=True)
class Features:
    """What the distances are taken between, of N images each: whole, background, layout, style."""

    whole: Tensor
    background: Tensor
    layout: np.ndarray
    style: Tensor

    @classmethod
    def of(cls, images: Images, clip: Clip) -> "Features":
        whole = images.features(clip)
        return cls(
            whole=whole,
            background=images.background.features(clip),
            layout=layout(images.subject),
            style=style_features(whole, clip.encode_texts(STYLE_SENTENCES)),
        )

    @property
    def subject_found(self) -> Tensor:
        """[N] 1 where a subject is seen: of the others there is no layout."""
        return torch.from_numpy(~np.isnan(self.layout).any(axis=1)).float()

    def rows(self, rows: np.ndarray) -> "Features":
        return Features(self.whole[rows], self.background[rows], self.layout[rows], self.style[rows])

    @classmethod
    def joined(cls, first: "Features", second: "Features") -> "Features":
        return cls(
            torch.cat([first.whole, second.whole]),
            torch.cat([first.background, second.background]),
            np.concatenate([first.layout, second.layout]),
            torch.cat([first.style, second.style]),
        )


def distances(base: Features, customized: Features) -> dict[str, float]:
    """Our definition of the Wasserstein metric, in three views, and its parts."""
    return {
        "w2_gaussian": gaussian_w2(base.whole, customized.whole),
        "w2_exact": exact_w2(base.whole, customized.whole),
        "w2_sliced": sliced_w2(base.whole, customized.whole),
        "w2_background": exact_w2(base.background, customized.background),
        "w2_layout": layout_w2(base.layout, customized.layout),
        "w2_style": exact_w2(base.style, customized.style),
    }


def figures(base: Features, customized: Features, prompt_of: np.ndarray) -> dict[str, Figure]:
    """The distances, with intervals over prompts (jackknife)."""

    @cache
    def of(rows: bytes) -> dict[str, float]:  # each set of rows is asked for once by every distance
        at = np.frombuffer(rows, dtype=np.int64).copy()  # torch wants to be able to write in it
        return distances(base.rows(at), customized.rows(at))

    def at(name: str) -> Callable[[np.ndarray], float]:
        return lambda rows: of(rows.tobytes())[name]

    names = of(np.arange(len(prompt_of)).tobytes())
    return {name: over_prompts(at(name), prompt_of) for name in names}


def chances(base: Features, customized: Features, prompt_of: np.ndarray) -> dict[str, float]:
    """How often chance alone makes background, layout and style differ so much.

    Layouts are those of the images where a subject is found. What there are too few images to tell is left out.

    Args:
        base: of other seeds: with the same ones the customized model's images are like the base's for their noise.
    """
    found, base_found = (~np.isnan(some.layout).any(axis=1) for some in (customized, base))
    told = {
        "w2_background": chance(customized.background, base.background, prompt_of, prompt_of),
        "w2_layout": chance(customized.layout[found], base.layout[base_found], prompt_of[found], prompt_of[base_found]),
        "w2_style": chance(customized.style, base.style, prompt_of, prompt_of),
    }
    return {name: value for name, value in told.items() if math.isfinite(value)}


def features_of(evidence: Evidence) -> Features:
    return Features.of(evidence.images, evidence.clip)


def _compute(evidence: Evidence) -> dict[str, Figure]:
    own, base = evidence.once(features_of), Features.of(evidence.base_images, evidence.clip)
    found = {"subject_found": mean_over_prompts(own.subject_found, evidence.prompt_of)}
    return found | figures(base, own, evidence.prompt_of)


METRIC = Metric(
    (
        Measure(
            "w2_gaussian",
            "W2 Gaussian",
            "Wasserstein distance, both sides taken as Gaussian, of the images' features to those of the base "
            "model's images of the class noun, same prompts and seeds.",
            "lower",
            SPECIFIC,
            place=10,
        ),
        Measure(
            "w2_exact",
            "W2 exact",
            "Wasserstein distance of the same features by exact assignment of image to image.",
            "lower",
            SPECIFIC,
            place=20,
        ),
        Measure(
            "w2_sliced",
            "W2 sliced",
            "Wasserstein distance of the same features, averaged over one-dimensional views.",
            "lower",
            SPECIFIC,
            place=30,
        ),
        Measure(
            "w2_background",
            "W2 background",
            "Wasserstein distance of what is around the subject to the base model's: the background that the concept "
            "brings along.",
            "lower",
            SPECIFIC,
            place=40,
        ),
        Measure(
            "w2_layout",
            "W2 layout",
            "Wasserstein distance of where the subject stands and how large it is, in the images where it is found, "
            "to the base model's layouts.",
            "lower",
            SPECIFIC,
            place=50,
        ),
        Measure(
            "subject_found",
            "subject found",
            "Share of images in which the judges see the subject at all: where it is low, background and layout say "
            "little.",
            None,
            SPECIFIC,
            is_share=True,
            place=60,
        ),
        Measure(
            "w2_style",
            "W2 style",
            "Wasserstein distance of the images' style to the base model's.",
            "lower",
            SPECIFIC,
            place=70,
        ),
    ),
    frozenset({Need.SUBJECT}),
    _compute,
)
