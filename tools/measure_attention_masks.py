"""Masks from the embedded model's attention against true ones, for the individuals of docs/images/individuals.png.

    python tools/measure_attention_masks.py

Prints, for five training pictures of each, the soft IoU (sum of minima over sum of maxima) of the attention mask and
the true mask: mean, lowest and highest. Beside it the same for the attention to another class noun, and for a mask that
covers everything.
"""

from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
from draw_individuals import first_seeds
from PIL import Image

from infusion import load_base, load_concept, subject_masks
from infusion.toybox.concepts import write_concept


def soft_iou(first: Image.Image, second: Image.Image) -> float:
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def main() -> None:
    base = load_base("toybox")
    for seed in first_seeds(6):
        with TemporaryDirectory() as folder:
            noun = write_concept(seed, folder)
            concept = load_concept(folder, noun, name="it")
        bare = replace(concept, masks=(None,) * len(concept.images), mask_sources=(None,) * len(concept.images))
        other = "car" if noun == "elephant" else "elephant"
        told = []
        for word in (noun, other):
            masks = subject_masks(base, replace(bare, class_noun=word))
            values = [soft_iou(mask.image, truth) for mask, truth in zip(masks, concept.masks, strict=True)]
            told.append(f"{word} {np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        full = np.mean([soft_iou(Image.new("L", truth.size, 255), truth) for truth in concept.masks])
        print(f"seed {seed}: {told[0]}, {told[1]}, everything {full:.2f}", flush=True)


if __name__ == "__main__":
    main()
