"""PIL pictures -> tensors: the few of torchvision's transforms that diffusers' training scripts ask for.

Sizes are those of the shorter side, and random choices are drawn with torch, as in torchvision; what it draws from one
seed is not promised to be the same.
"""

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class InterpolationMode(Enum):
    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    LANCZOS = Image.Resampling.LANCZOS


class Compose:
    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, picture: Any) -> Any:
        for transform in self.transforms:
            picture = transform(picture)
        return picture


class Resize:
    """The shorter side becomes `size`; a pair is height and width."""

    def __init__(
        self, size: int | tuple[int, int], interpolation: InterpolationMode = InterpolationMode.BILINEAR
    ) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, picture: Image.Image) -> Image.Image:
        if isinstance(self.size, tuple):
            height, width = self.size
        else:
            scale = self.size / min(picture.size)
            width, height = (self.size if side == min(picture.size) else int(side * scale) for side in picture.size)
        return picture.resize((width, height), self.interpolation.value)


class _Crop:
    """A square of side `size`; smaller pictures are refused, as nothing here pads."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        spare = [side - self.size for side in picture.size]
        if min(spare) < 0:
            raise ValueError(f"A picture of {picture.size} cannot be cropped to {self.size}.")
        left, top = (self.place(room) for room in spare)
        return picture.crop((left, top, left + self.size, top + self.size))

    def place(self, room: int) -> int:
        raise NotImplementedError


class CenterCrop(_Crop):
    def place(self, room: int) -> int:
        return round(room / 2)


class RandomCrop(_Crop):
    def place(self, room: int) -> int:
        return int(torch.randint(room + 1, ()).item()) if room else 0


class RandomHorizontalFlip:
    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, picture: Image.Image) -> Image.Image:
        return ImageOps.mirror(picture) if torch.rand(()).item() < self.p else picture


class ToTensor:
    """[C, H, W] in [0, 1]."""

    def __call__(self, picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(picture)).float() / 255
        return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


class Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std


def install() -> None:
    """From now on `from torchvision import transforms` finds this module, in this process."""
    package = ModuleType("torchvision")
    package.__spec__ = ModuleSpec("torchvision", loader=None)
    package.transforms = sys.modules[__name__]  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": package, "torchvision.transforms": package.transforms}
