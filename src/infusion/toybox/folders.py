"""Scenes -> a folder of images with captions and everything that is true of them."""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infusion.errors import UserError
from infusion.files import save_png, whole_file
from infusion.toybox.captions import caption
from infusion.toybox.concepts import to_image
from infusion.toybox.render import render
from infusion.toybox.scene import sample_scene

_AT_ONCE = 20


def facts(seed: int) -> dict[str, Any]:
    """Everything that is known of a scene, with its caption, as one JSON object."""
    return {"file_name": f"{seed:06d}.png", "text": _caption(seed), "seed": seed} | asdict(sample_scene(seed))


def write_scenes(folder: Path, first_seed: int, count: int, size_px: int = 64) -> Iterator[int]:
    """Render scenes `first_seed` to `first_seed + count - 1`; yields how many are there.

    For every scene: `000007.png`; its caption in `000007.txt`; white where its toys are in `masks/000007.png`; and in
    `truth/000007.npz` the arrays of `render.Rendering`. `metadata.jsonl` holds the facts of all scenes in the folder,
    an object a line. What is there already is not drawn again.

    Raises:
        UserError: the folder holds scenes of another size, or cannot be written to.
    """
    _check_size(folder, size_px)
    seeds = range(first_seed, first_seed + count)
    there = _seeds_in(folder)
    missing = [seed for seed in seeds if seed not in there]
    yield count - len(missing)
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        drawn = render([sample_scene(seed) for seed in some], size_px)
        for row, seed in enumerate(some):
            name = f"{seed:06d}"
            save_png(to_image(drawn.images[row]), folder / f"{name}.png")
            save_png(to_image(drawn.masks[row].sum(0, keepdim=True)), folder / "masks" / f"{name}.png")
            with whole_file(folder / f"{name}.txt") as file:
                file.write_text(f"{_caption(seed)}\n", encoding="utf-8")
            masks, depth, parts = (part[row].numpy() for part in (drawn.masks, drawn.depth, drawn.parts))
            with whole_file(folder / "truth" / f"{name}.npz") as file:
                np.savez_compressed(file, masks=masks, depth=depth, parts=parts)
        yield count - len(missing) + start + len(some)
    with whole_file(folder / "metadata.jsonl") as file:
        lines = [json.dumps(facts(seed)) for seed in sorted(_seeds_in(folder))]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _caption(seed: int) -> str:
    return caption(sample_scene(seed), random.Random(seed))


def _seeds_in(folder: Path) -> set[int]:
    """Of the scenes that are there whole: their truth is written last."""
    return {int(path.stem) for path in (folder / "truth").glob("[0-9]*.npz")}


def _check_size(folder: Path, size_px: int) -> None:
    for path in folder.glob("[0-9]*.png"):
        with Image.open(path) as image:
            if image.width != size_px:
                raise UserError(
                    f"{folder} holds images of {image.width} pixels a side, not {size_px}. Choose another folder."
                )
        return
