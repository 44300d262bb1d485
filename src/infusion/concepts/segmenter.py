"""Images + a class noun -> soft masks of where it is, by CLIPSeg."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, CLIPSegForImageSegmentation, CLIPTokenizer

from infusion.base.prompts import TEMPLATES
from infusion.concepts.concept import Concept
from infusion.errors import UserError, first_line
from infusion.metrics.encoders import Preparation

CLIPSEG = "CIDAS/clipseg-rd64-refined"
_HARDLY_FOUND = 0.1  # probability at the best place, below which a person should look


@dataclass(frozen=True)
class Segmenter:
    """A CLIPSeg: tells for every place of an image how probable a text is there."""

    model: Any
    tokenizer: Any
    prepare: Preparation

    @torch.no_grad()
    def probability(self, image: Image.Image, texts: Sequence[str]) -> torch.Tensor:
        """Mean over texts of how probable each is at each place of the image, [H, W] of the model's own size."""
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        prepared = self.prepare(pixels.to(self.model.device)).expand(len(texts), -1, -1, -1)
        logits = self.model(pixel_values=prepared, **tokens).logits
        return logits.reshape(len(texts), *logits.shape[-2:]).sigmoid().mean(0).cpu()


def load_segmenter(name_or_path: str | Path | None = None, device: str | torch.device = "cpu") -> Segmenter:
    """Load a CLIPSeg: a folder or hub id. Without a name, CLIPSEG from the local cache: nothing is downloaded that
    nobody asked for.

    Raises:
        UserError: no CLIPSeg is found there.
    """
    name, local = str(name_or_path or CLIPSEG), name_or_path is None
    try:
        if AutoConfig.from_pretrained(name, local_files_only=local).model_type != "clipseg":
            raise ValueError("that is another kind of model.")
        model: Any = CLIPSegForImageSegmentation.from_pretrained(name, dtype=torch.float32, local_files_only=local)
        preparation = Preparation.of(AutoImageProcessor.from_pretrained(name, local_files_only=local))
        tokenizer = CLIPTokenizer.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f'No CLIPSeg could be loaded from "{name}": {first_line(error)} Give a folder, or the hub id "{CLIPSEG}".'
        ) from error
    return Segmenter(model.to(device).eval().requires_grad_(False), tokenizer, preparation)


def segmented(concept: Concept, segmenter: Segmenter) -> Concept:
    """The concept with a mask for every image that had none: the probability of the class noun, averaged over the
    training prompts and divided by its maximum, as in the paper."""
    texts = [template.format(concept.class_noun) for template in TEMPLATES]
    masks, sources, notes = list(concept.masks), list(concept.mask_sources), list(concept.warnings)
    for i, (image, mask) in enumerate(zip(concept.images, concept.masks, strict=True)):
        if mask is not None:
            continue
        probability = segmenter.probability(image, texts)
        peak = probability.max()
        if peak < _HARDLY_FOUND:
            notes.append(f"CLIPSeg hardly finds a {concept.class_noun} in {concept.sources[i]}: look at its mask.")
        levels = (probability / peak.clamp(min=1e-8) * 255).round().to(torch.uint8)
        masks[i] = Image.fromarray(levels.numpy()).resize(image.size, Image.Resampling.BILINEAR)
        sources[i] = "clipseg"
    return replace(concept, masks=tuple(masks), mask_sources=tuple(sources), warnings=tuple(notes))
