"""Pictures, what was asked for -> cosines of their features: to the text, and to the training pictures.

A cosine means nothing by itself: `Alignment` is what it is held against, the base's pictures of the class noun (floor)
and other real pictures of the concept (ceiling). Use encoders that no method was trained with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from infusion.errors import UserError
from infusion.metrics.encoders import Clip, ImageEncoder


def text_alignment(clip: Clip, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Cosine of each picture [N, 3, H, W] to its own text, [N] (CLIPScore of arXiv 2104.08718, unscaled).

    The texts have class nouns in the place of concepts' names.
    """
    assert len(images) == len(texts)
    return (clip.encode_images(images) * clip.encode_texts(texts)).sum(dim=1)


def image_alignment(encoder: ImageEncoder | Clip, images: Tensor, references: Tensor) -> Tensor:
    """Mean cosine of each picture [N, 3, H, W] to the training pictures [K, 3, H, W], [N] (arXiv 2208.12242, 4.1)."""
    return _cosines(encoder, images, references).mean(dim=1)


def _cosines(encoder: ImageEncoder | Clip, images: Tensor, references: Tensor) -> Tensor:
    return encoder.encode_images(images) @ encoder.encode_images(references).T  # [N, K]


class Nearest(NamedTuple):
    """Which training picture a picture is most like, and how much; [N] each."""

    reference: Tensor
    cosine: Tensor


def nearest_reference(encoder: ImageEncoder | Clip, images: Tensor, references: Tensor) -> Nearest:
    """The training picture [K, 3, H, W] that each picture [N, 3, H, W] is most like: where a copy is looked for."""
    cosine, reference = _cosines(encoder, images, references).max(dim=1)
    return Nearest(reference, cosine)


@dataclass(frozen=True)
class Alignment:
    """The two ends of image alignment.

    floor: of the base's pictures of the class noun. ceiling: of other real pictures of the concept.

    Raises:
        UserError: the ceiling is not above the floor.
    """

    floor: float
    ceiling: float

    def __post_init__(self) -> None:
        if not self.ceiling > self.floor:
            raise UserError(
                f"Other pictures of the concept ({self.ceiling:.3f}) are no more like the training pictures than the "
                f"base's pictures of its class noun ({self.floor:.3f}): choose another encoder or other pictures."
            )

    @classmethod
    def measured(
        cls, encoder: ImageEncoder | Clip, references: Tensor, class_pictures: Tensor, other_pictures: Tensor
    ) -> "Alignment":
        """From the training pictures, the base's of the class noun, and real ones of the concept not trained on."""
        ends = (image_alignment(encoder, some, references).mean().item() for some in (class_pictures, other_pictures))
        return cls(*ends)
