"""Images of two concepts in one prompt -> whether both are there, and how much of each is in the other's place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from infusion import metrics
from infusion.errors import UserError
from infusion.evaluation.evaluate import ConceptImages
from infusion.evaluation.evaluators import Evaluators


def measure_pair(
    evaluators: Evaluators, images: Tensor, real: Sequence[ConceptImages], class_nouns: Sequence[str]
) -> dict[str, float]:
    """Both-present rate; in the images that show both, likeness of each toy to its own concept and to the other's.

    A toy is looked at alone: all that is not its segment takes the background's mean colour. Two toys of one class are
    distinguished as the parts of the class's segment left and right of its middle, and matched to the concepts in the
    better of the two ways, which favours them somewhat. leak: likeness to the other concept, less what real images of
    the one have, cut out alike.
    """
    if evaluators.judges is None:
        raise UserError("Two concepts in one prompt are measured by the toybox's judges only.")
    first, second = class_nouns
    same = first == second
    present = (
        metrics.two_of(evaluators.judges, images, first)
        if same
        else metrics.both_present(evaluators.judges, images, first, second)
    )
    measures = {"both_present": present.float().mean().item()}
    shown = images[present]
    if not len(shown):
        return measures
    parts = _halves(evaluators, shown, first) if same else [_alone(evaluators, shown, noun) for noun in class_nouns]
    likeness = torch.stack([_likeness(evaluators, part, real) for part in parts])  # [2 toys, 2 concepts, N]
    if same:
        swapped = likeness.flip(0)
        better = (likeness[0, 0] + likeness[1, 1]) >= (swapped[0, 0] + swapped[1, 1])
        likeness = torch.where(better, likeness, swapped)
    cut_out = [_alone(evaluators, one.training, noun) for one, noun in zip(real, class_nouns, strict=True)]
    apart = torch.stack([_likeness(evaluators, some, real).mean(dim=1) for some in cut_out])  # [2 toys, 2 concepts]
    own = likeness[[0, 1], [0, 1]].mean().item()
    other = likeness[[0, 1], [1, 0]].mean().item()
    return measures | {
        "identity_own": own,
        "identity_other": other,
        "leak": other - apart[[0, 1], [1, 0]].mean().item(),
    }


def _likeness(evaluators: Evaluators, images: Tensor, real: Sequence[ConceptImages]) -> Tensor:
    """Cosines of images to the training images of each of two concepts, [2, N]."""
    encode = evaluators.encoder.encode_images
    features = encode(images)
    return torch.stack([metrics.image_alignment(features, encode(one.training)) for one in real])


def _alone(evaluators: Evaluators, images: Tensor, class_noun: str) -> Tensor:
    assert evaluators.judges
    return metrics.without_subject(images, 1 - metrics.subject_masks(evaluators.judges, images, class_noun))


def _halves(evaluators: Evaluators, images: Tensor, class_noun: str) -> list[Tensor]:
    """The toys of one class, alone: its segment left and right of the segment's mean."""
    assert evaluators.judges
    masks = metrics.subject_masks(evaluators.judges, images, class_noun)
    columns = torch.arange(masks.shape[-1])
    middle = (masks.sum(dim=1) @ columns.float()) / masks.sum(dim=(1, 2)).clamp(min=1e-6)  # [N]
    left = masks * (columns[None, None] < middle[:, None, None])
    return [metrics.without_subject(images, 1 - mask) for mask in (left, masks - left)]
