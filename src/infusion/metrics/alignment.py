"""Features of images and of the texts they were drawn from -> how well each image shows its text."""

from torch import Tensor

from infusion.intervals import Figure
from infusion.metrics.metric import FIDELITY, Evidence, Measure, Metric
from infusion.metrics.prompts import mean_over_prompts


def text_alignment(images: Tensor, texts: Tensor) -> Tensor:
    """Cosine of each image to its own text, of features [N, D], [N] (CLIPScore of arXiv 2104.08718, unscaled).

    The texts have class nouns in the place of concepts' names.
    """
    assert len(images) == len(texts)
    return (images * texts).sum(dim=1)


def of_each_image(evidence: Evidence) -> Tensor:
    """[N]."""
    return text_alignment(evidence.images.features(evidence.clip), evidence.clip.encode_texts(evidence.texts))


def _compute(evidence: Evidence) -> dict[str, Figure]:
    return {"text_alignment": mean_over_prompts(evidence.once(of_each_image), evidence.prompt_of)}


METRIC = Metric(
    (
        Measure(
            "text_alignment",
            "text alignment",
            "Cosine between an image and its prompt, by CLIP.",
            "higher",
            FIDELITY,
            place=20,
        ),
    ),
    frozenset(),
    _compute,
)
