"""A name or folder -> an encoder of images, and of texts: CLIP, DINOv2, or the toybox's own behind one interface.

Features are of unit length, so that their dot products are cosines. Who measures with them need not know which world
the images are from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPModel, CLIPTokenizer

from infusion.errors import UserError, first_line, nearest
from infusion.toybox.judges import JUDGE_SETS, judges_dir

TOYBOX_NAMES = tuple(f"toybox-{name}" for name in JUDGE_SETS)
_AT_ONCE = 32  # images, or texts
_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class Preparation:
    """Images [B, 3, H, W] in [0, 1] -> what an encoder was trained on, as its image processor tells.

    `resized` is (height, width), or the length of the shorter side; `cropped` (height, width) about the middle.
    """

    resized: tuple[int, int] | int
    cropped: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> "Preparation":
        size, crop = processor.size, processor.crop_size if getattr(processor, "do_center_crop", False) else None
        shortest = size.get("shortest_edge")
        return cls(
            resized=shortest or (size["height"], size["width"]),
            cropped=(crop["height"], crop["width"]) if crop else None,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
        )

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if isinstance(self.resized, int):
            shorter = min(height, width)
            target = height * self.resized // shorter, width * self.resized // shorter
        else:
            target = self.resized
        if target != (height, width):
            images = F.interpolate(images, target, mode="bicubic", antialias=True).clamp(0, 1)
        if self.cropped:
            top, left = (target[0] - self.cropped[0]) // 2, (target[1] - self.cropped[1]) // 2
            images = images[..., top : top + self.cropped[0], left : left + self.cropped[1]]
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True)
class ImageEncoder:
    """A model whose `pooler_output` describes an image: DINOv2, or the toybox's identity encoder."""

    model: Any
    prepare: Preparation

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], of any size -> features [B, D] of unit length."""

        def features(some: Tensor) -> Tensor:
            pixels = self.prepare(some.cpu()).to(self.model.device, self.model.dtype)
            return self.model(pixel_values=pixels).pooler_output.flatten(1)

        return _in_parts(features, images.split(_AT_ONCE))


@dataclass(frozen=True)
class Clip:
    """Both towers of a CLIP: images and texts in one space."""

    model: CLIPModel
    tokenizer: Any
    prepare: Preparation

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], of any size -> features [B, D] of unit length."""

        def features(some: Tensor) -> Tensor:
            pixels = self.prepare(some.cpu()).to(self.model.device, self.model.dtype)
            return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

        return _in_parts(features, images.split(_AT_ONCE))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts, cut to the length the model reads -> features [B, D] of unit length."""

        def features(some: Sequence[str]) -> Tensor:
            tokens = self.tokenizer(list(some), padding=True, truncation=True, return_tensors="pt")
            read = self.model.text_model(**tokens.to(self.model.device))
            return self.model.text_projection(read.pooler_output)

        return _in_parts(features, [texts[i : i + _AT_ONCE] for i in range(0, len(texts), _AT_ONCE)])


def _in_parts(features: Callable[[Any], Tensor], parts: Sequence[Any]) -> Tensor:
    """Features are returned on the CPU: all that is done with them is small."""
    return F.normalize(torch.cat([features(part).cpu() for part in parts]), dim=-1)


def load_clip(name_or_path: str | Path, device: str | torch.device = "cpu") -> Clip:
    """Load a CLIP: "toybox-a", "toybox-b", a folder or a hub id that `CLIPModel.from_pretrained` loads.

    Raises:
        UserError: no CLIP is found there.
    """

    def load(path: str) -> Clip:
        if AutoConfig.from_pretrained(path).model_type != "clip":
            raise ValueError("that is another kind of model.")
        model: Any = CLIPModel.from_pretrained(path, dtype=torch.float32)
        model.to(device).eval().requires_grad_(False)
        preparation = Preparation.of(AutoImageProcessor.from_pretrained(path))
        return Clip(model, CLIPTokenizer.from_pretrained(path), preparation)

    return _load(load, name_or_path, "clip", "CLIP", "openai/clip-vit-base-patch32")


def load_image_encoder(name_or_path: str | Path, device: str | torch.device = "cpu") -> ImageEncoder:
    """Load an encoder of images: "toybox-a", "toybox-b", a folder or a hub id (DINOv2) that `AutoModel` loads.

    Raises:
        UserError: no model of images alone is found there.
    """

    def load(path: str) -> ImageEncoder:
        if AutoConfig.from_pretrained(path).model_type == "clip":
            raise ValueError("that is a CLIP; load_clip loads it.")
        preparation = Preparation.of(AutoImageProcessor.from_pretrained(path))
        model = AutoModel.from_pretrained(path, dtype=torch.float32)
        model.to(device).eval().requires_grad_(False)
        return ImageEncoder(model, preparation)

    return _load(load, name_or_path, "identity", "image encoder", "facebook/dinov2-base")


def _load(load: Callable[[str], _Loaded], name_or_path: str | Path, folder: str, kind: str, example: str) -> _Loaded:
    name = str(name_or_path)
    give = f'Give "{TOYBOX_NAMES[0]}", "{TOYBOX_NAMES[1]}", a folder, or a hub id such as "{example}".'
    if name.startswith("toybox") and name not in TOYBOX_NAMES:
        raise UserError(f'The toybox has no {kind} called "{name}".{nearest(name, TOYBOX_NAMES)} {give}')
    path = str(judges_dir(name.removeprefix("toybox-")) / folder) if name in TOYBOX_NAMES else name
    try:
        return load(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f'No {kind} could be loaded from "{name}": {first_line(error)} {give}') from error
