"""Images of any shape -> images of the shapes that a base is trained on."""

from diffusers.training_utils import find_nearest_bucket
from PIL import Image, ImageOps

from infusion.base import Base
from infusion.errors import UserError, nearest

CROPS = ("square", "buckets")
"""square: the middle square. buckets: the middle, in the nearest of the shapes that have about the square's area."""


def cropped(image: Image.Image, base: Base, crop: str = "square") -> Image.Image:
    """The middle of an image, as training sees it."""
    return ImageOps.fit(image, training_size(image.size, base, crop), Image.Resampling.LANCZOS)


def training_size(size: tuple[int, int], base: Base, crop: str = "square") -> tuple[int, int]:
    """Width and height in which an image of this width and height is trained on.

    Raises:
        UserError: there is no such crop.
    """
    if crop not in CROPS:
        raise UserError(f'crop = "{crop}" is not one of {", ".join(CROPS)}.{nearest(crop, CROPS)}')
    if crop == "square":
        return base.size_px, base.size_px
    buckets = bucket_sizes(base.size_px, base.step_px)
    width, height = buckets[find_nearest_bucket(*size, buckets)]
    return width, height


def bucket_sizes(size_px: int, step_px: int) -> list[tuple[int, int]]:
    """The square and shapes up to four times as long as wide, as multiples of `step_px`; none has more area than the
    square, so that none takes more memory."""
    sizes = {(size_px, size_px): None}
    for longer in range(size_px + step_px, 2 * size_px + 1, step_px):
        shorter = size_px * size_px // longer // step_px * step_px
        if shorter > 0:
            sizes |= {(shorter, longer): None, (longer, shorter): None}
    return list(sizes)
