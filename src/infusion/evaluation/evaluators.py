"""Names -> who evaluates images: encoders that no method is trained with, and the toybox's judges."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infusion import metrics
from infusion.base import Base
from infusion.base.cross_attention import cross_attentions
from infusion.concepts.masks import attention_masks
from infusion.errors import UserError
from infusion.evaluation.drawing import as_image
from infusion.metrics.encoders import Clip, ImageEncoder, load_clip, load_image_encoder
from infusion.toybox.judges import Judges, load_judges


@dataclass(frozen=True)
class Evaluators:
    """Who looks at images: encoders that no method is trained with, and the toybox's judges where it is the world."""

    clip: Clip
    encoder: ImageEncoder
    judges: Judges | None = None

    def check_can_see(self, base: Base) -> None:
        """Raise UserError if nobody could say where the subject is in images of this base."""
        if not self.judges and not cross_attentions(base.network):
            raise UserError(
                f'In "{base.id}" image and text attend jointly, so its attention cannot say where the subject is in '
                "images, which measuring needs; models with cross-attention can be measured."
            )

    def subject(self, base: Base, images: Tensor, class_noun: str) -> Tensor:
        """Where the subject is in images [N, 3, H, W]: [N, H, W] in [0, 1], by the judges or the base's attention."""
        if self.judges:
            return metrics.subject_masks(self.judges, images, class_noun)
        found = attention_masks(base, [as_image(image) for image in images], class_noun)
        return torch.stack([torch.from_numpy(np.array(mask)).float() / 255 for mask in found])

    def foreground(self, base: Base, images: Tensor, class_noun: str) -> Tensor:
        """Where anything but the background is: for the judges, toys of every class, also those drawn by mistake."""
        if self.judges:
            return self.judges.foreground(images).cpu()
        return self.subject(base, images, class_noun)


def find_evaluators(names: Mapping[str, str | None], device: str | torch.device = "cpu") -> Evaluators:
    """Load the evaluators of these names, as `evaluator_names` gives them.

    Raises:
        UserError: one of them cannot be loaded.
    """
    clip, encoder, judges = names["clip"], names["encoder"], names["judges"]
    assert clip and encoder
    return Evaluators(
        load_clip(clip, device), load_image_encoder(encoder, device), load_judges(judges) if judges else None
    )
