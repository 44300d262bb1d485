"""Words on a command line -> what a folder of pictures is understood to be: `infusion prepare`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from infusion.errors import UserError

if TYPE_CHECKING:
    from infusion.base import Base
    from infusion.concept import Concept

CropOption = Annotated[
    str,
    typer.Option(
        help='What is seen of a picture: "square", its middle square, or "buckets", its middle in the nearest of some '
        "shapes as large as the square."
    ),
]
SegmenterOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help='Who finds the subject in pictures without a mask: "attention", the base itself; a CLIPSeg, by folder or '
        'hub id; or "auto": CIDAS/clipseg-rd64-refined if it is in the local cache and the base is not the toybox, '
        "else the base.",
    ),
]


def find_masks(concept: "Concept", base: "Base", segmenter: str) -> "Concept":
    """The concept with CLIPSeg's masks where it had none; as it is where the base's attention is to find them."""
    if segmenter == "attention" or None not in concept.masks:
        return concept

    from infusion.segmenter import load_segmenter, segmented

    if segmenter != "auto":
        found = segmented(concept, load_segmenter(segmenter, base.device))
    elif base.id == "toybox":  # whose pictures no CLIPSeg has seen
        return concept
    else:
        try:
            found = segmented(concept, load_segmenter(device=base.device))
        except UserError:
            return concept
    for warning in found.warnings[len(concept.warnings) :]:
        print(f"warning: {warning}", file=sys.stderr)
    return found
