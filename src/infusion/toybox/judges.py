"""Images [B, 3, H, W] -> Facts: what stands in them, read by small networks that were trained on renders.

Two sets of judges, "a" and "b", started from other seeds and saw other scenes: what is tuned with one set is scored
with the other. Beside the fact reader a set has an identity encoder and a CLIP, real `transformers` models in the
folders `identity` and `clip` of `judges_dir(name)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from infusion.toybox.scene import ACCESSORIES, BACKGROUNDS, CLASSES, COLORS, MAX_TOYS, SIZES, STYLES, TIMES

JUDGE_SETS = ("a", "b")
SIZE_PX = 64  # side of the images that judges look at
HEADS = {
    "classes": len(CLASSES),
    "backgrounds": len(BACKGROUNDS),
    "styles": len(STYLES),
    "times": len(TIMES),
    "accessories": len(ACCESSORIES),
    "sizes": len(SIZES),
    "counts": MAX_TOYS,
}
_SEEN = 0.2  # peak of a segment; who asks for a relation knows which toys to look for
_YES_OR_NO = ("classes", "accessories")  # several can be true of one image; of the other heads' values, one is


def judges_dir(name: str) -> Path:
    """Where the weights of a set of `JUDGE_SETS` lie."""
    return Path(__file__).parent / f"judges_{name}"


@dataclass(frozen=True)
class Facts:
    """What a fact reader believes of B images, as probabilities.

    classes: [B, 16] a toy of this class is seen. accessories: [B, 4] some toy wears one. Each stands for itself.
    colors: [B, 16, 10] colour of the toys of a class, if there are any; rows add up to 1, as all below do.
    backgrounds: [B, 10]. styles: [B, 4]. times: [B, 3]. counts: [B, 3], 1 to 3 toys.
    sizes: [B, 3], for images of one toy.
    """

    classes: Tensor
    colors: Tensor
    backgrounds: Tensor
    styles: Tensor
    times: Tensor
    accessories: Tensor
    sizes: Tensor
    counts: Tensor

    def class_noun(self) -> list[str]:
        """The most probable class of each image."""
        return _most_probable(self.classes, list(CLASSES))

    def shows(self, *class_nouns: str) -> Tensor:
        """[B] bool: whether toys of all these classes are seen."""
        return (self.classes[:, [list(CLASSES).index(noun) for noun in class_nouns]] > 0.5).all(dim=1)

    def color_of(self, class_noun: str) -> list[str]:
        """The most probable colour of the toys of a class, whether there are any or not."""
        return _most_probable(self.colors[:, list(CLASSES).index(class_noun)], list(COLORS))

    def background(self) -> list[str]:
        return _most_probable(self.backgrounds, BACKGROUNDS)

    def style(self) -> list[str]:
        return _most_probable(self.styles, STYLES)

    def time(self) -> list[str]:
        return _most_probable(self.times, TIMES)

    def size(self) -> list[str]:
        return _most_probable(self.sizes, SIZES)

    def count(self) -> list[int]:
        return (self.counts.argmax(dim=1) + 1).tolist()

    def accessory(self) -> list[str | None]:
        """What is worn most probably, or None."""
        kinds = _most_probable(self.accessories, ACCESSORIES)
        worn = (self.accessories > 0.5).any(dim=1).tolist()
        return [kind if some else None for kind, some in zip(kinds, worn, strict=True)]


def _most_probable(probabilities: Tensor, names: Sequence[str]) -> list[str]:
    return [names[index] for index in probabilities.argmax(dim=1).tolist()]


# ------------------------------------------------------------------------------------------------- the network


def _convolution(channels: int, out: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    padding = (side - 1) // 2
    return nn.Sequential(nn.Conv2d(channels, out, side, stride, padding, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class _Stage(nn.Module):
    """Half the side, then a residual block."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.down = _convolution(channels, out, stride=2)
        self.block = nn.Sequential(_convolution(out, out), nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return F.relu(x + self.block(x))


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class FactReader(nn.Module):
    """Images [B, 3, 64, 64] in [0, 1] -> logits of every fact, by name, and of the nouns of the segments.

    A feature pyramid: halves of the side down to 4 pixels for the facts of the whole image, and up again to 32
    for the segments. The colour of a class is read where its segment lies.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 24, side=4, stride=2)
        self.stages = nn.ModuleList([_Stage(24, 48), _Stage(48, 96), _Stage(96, 128)])
        self.lateral = nn.ModuleList([nn.Conv2d(width, 32, 1) for width in (24, 48, 96, 128)])
        self.fine = _convolution(32, 32)
        self.segments = nn.Conv2d(32, len(CLASSES) + 1, 1)
        self.paint = _convolution(32 + 24, 48, side=1)
        self.whole = nn.Sequential(nn.Linear(48 + 2 * 128 + 48, 128), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, number) for name, number in HEADS.items()})
        self.colors = nn.Sequential(nn.Linear(48 + 128, 64), nn.ReLU(), nn.Linear(64, len(COLORS)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`segments` are [B, 17, 32, 32], the backdrop last; the others have the shapes of `Facts`."""
        levels = [self.stem((images - 0.5) / 0.25)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        down, deep = levels[1], levels[-1]
        up = self.lateral[-1](deep)
        for lateral, level in zip(reversed(self.lateral[:-1]), reversed(levels[:-1]), strict=True):
            up = _upsample(up) + lateral(level)
        fine = self.fine(up)
        segments = self.segments(fine)
        paint = self.paint(torch.cat([fine, levels[0]], dim=1)).flatten(2)
        summary = [down.mean((2, 3)), deep.mean((2, 3)), deep.amax((2, 3)), paint.amax(2)]
        whole = self.whole(torch.cat(summary, dim=1))
        where = segments.detach().float().softmax(dim=1)[:, :-1].flatten(2)  # [B, 16, 32 * 32]
        where = where / (where.sum(dim=-1, keepdim=True) + 1)
        painted = where.to(paint.dtype) @ paint.transpose(1, 2)
        context = whole[:, None].expand(-1, len(CLASSES), -1)
        return {
            **{name: head(whole) for name, head in self.heads.items()},
            "colors": self.colors(torch.cat([painted, context], dim=-1)),
            "segments": segments,
        }


# ---------------------------------------------------------------------------------------------------- the judge


@dataclass(frozen=True)
class Judges:
    """The fact reader of one set; its encoders are loaded by `infusion.metrics.encoders` ("toybox-a", "toybox-b")."""

    name: str
    reader: FactReader

    @torch.no_grad()
    def _logits(self, images: Tensor) -> dict[str, Tensor]:
        images = images.to(next(self.reader.parameters()).device, torch.float32)
        if images.shape[-2:] != (SIZE_PX, SIZE_PX):
            images = F.interpolate(images, (SIZE_PX, SIZE_PX), mode="bicubic", antialias=True).clamp(0, 1)
        several = [self.reader(some) for some in images.split(64)]
        return {name: torch.cat([logits[name] for logits in several]) for name in several[0]}

    def read(self, images: Tensor) -> Facts:
        """Facts of images [B, 3, H, W] in [0, 1] of any size.

        A class has two witnesses, the head that looks at the whole image and the peak of the class's segment: they
        are averaged.
        """
        logits = self._logits(images)
        peaks = logits.pop("segments").softmax(dim=1)[:, :-1].amax(dim=(2, 3))
        found = {name: x.sigmoid() if name in _YES_OR_NO else x.softmax(dim=-1) for name, x in logits.items()}
        return Facts(**found | {"classes": (found["classes"] + peaks) / 2})

    def _segments(self, images: Tensor) -> Tensor:
        """How probably each pixel shows each noun, or the backdrop, [B, 17, H, W]."""
        probability = self._logits(images)["segments"].softmax(dim=1)
        return F.interpolate(probability, images.shape[-2:], mode="bilinear")

    def segment(self, images: Tensor, class_noun: str) -> Tensor:
        """How probably each pixel of images [B, 3, H, W] shows a toy of the class, [B, H, W] in [0, 1]."""
        return self._segments(images)[:, list(CLASSES).index(class_noun)]

    def foreground(self, images: Tensor) -> Tensor:
        """How probably each pixel of images [B, 3, H, W] shows a toy of any class, [B, H, W] in [0, 1]."""
        return 1 - self._segments(images)[:, -1]

    def relation(self, images: Tensor, first_noun: str, second_noun: str) -> list[str | None]:
        """How the toy of the first class stands to the toy of the second, in each image.

        "left of", "right of" (either is also "next to") or "on top of"; None where one of them is not seen, where the
        first is below the second, and for two toys of one class.
        """
        if first_noun == second_noun:
            return [None] * len(images)
        segments = self._segments(images)
        rows = (list(CLASSES).index(noun) for noun in (first_noun, second_noun))
        (x1, y1, seen1), (x2, y2, seen2) = (_centre(segments[:, row]) for row in rows)
        right, up = (x1 - x2).tolist(), (y2 - y1).tolist()
        found: list[str | None] = []
        for dx, dy, seen in zip(right, up, (seen1 & seen2).tolist(), strict=True):
            if not seen or dy < -abs(dx):
                found.append(None)
            elif dy > abs(dx):
                found.append("on top of")
            else:
                found.append("left of" if dx < 0 else "right of")
        return found


def _centre(segments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centres of segments [B, H, W], x to the right and y down in [0, 1], and whether anything is seen; each [B]."""
    height, width = segments.shape[-2:]
    mass = segments.sum(dim=(1, 2)).clamp(min=1e-6)
    x = (segments.sum(dim=1) @ torch.linspace(0, 1, width, device=segments.device)) / mass
    y = (segments.sum(dim=2) @ torch.linspace(0, 1, height, device=segments.device)) / mass
    return x, y, segments.amax(dim=(1, 2)) > _SEEN


def load_judges(name: str = "a", device: str | torch.device = "cpu") -> Judges:
    """One of the two independent sets, of `JUDGE_SETS`."""
    reader = FactReader()
    weights = load_file(judges_dir(name) / "facts" / "model.safetensors")
    reader.load_state_dict({key: x.float() if x.is_floating_point() else x for key, x in weights.items()})
    return Judges(name, reader.to(device).eval().requires_grad_(False))
