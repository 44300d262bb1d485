"""What the camera meets -> an image: a style of drawing, and the light of the hour."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from infusion.toybox.backdrop import Draws
from infusion.toybox.scene import Scene


@dataclass
class Layers:
    """What B images of S pixels a side are made of. Where no toy is, its layers are 0."""

    ground: Tensor  # [B, 3, S, S] the backdrop with the shadows on it
    toys: Tensor  # [B, 1, S, S] bool, where a toy is seen
    color: Tensor  # [B, 3, S, S] of the toys, unlit
    diffuse: Tensor  # [B, 1, S, S] light that falls on them
    highlight: Tensor  # [B, 1, S, S]
    lines: Tensor  # [B, 1, S, S] 0 or 1: where a drawn outline goes

    def picked(self, rows: list[int]) -> "Layers":
        return Layers(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def _blurred(pictures: Tensor, width: int) -> Tensor:
    padded = F.pad(pictures, [width // 2] * 4, mode="replicate")
    return F.avg_pool2d(padded, width, stride=1)


def _photo(layers: Layers, draws: Draws) -> Tensor:
    return torch.where(layers.toys, (layers.color * layers.diffuse + layers.highlight).clamp(0, 1), layers.ground)


def _cartoon(layers: Layers, draws: Draws) -> Tensor:
    """Two tones, dark outlines, a backdrop of few and vivid colours."""
    tone = torch.where(layers.diffuse > 0.62, 1.05, 0.78)
    gray = layers.ground.mean(dim=1, keepdim=True)
    vivid = (gray + 1.35 * (layers.ground - gray)).clamp(0, 1)
    picture = torch.where(layers.toys, (layers.color * tone).clamp(0, 1), (vivid * 5).round() / 5)
    return torch.where(layers.lines > 0, 0.06, picture)


def _sketch(layers: Layers, draws: Draws) -> Tensor:
    """Coloured pencil on white paper: outlines, pale colours, shade by hatching; the place is only hinted at."""
    side = layers.color.shape[-1]
    ticks = torch.arange(side, device=layers.color.device) * (64 / side)
    hatch = ((ticks[:, None] + ticks[None, :]) % 4 < 1.5) & (layers.diffuse < 0.72)
    pencil = (0.34 + 0.62 * layers.color) * torch.where(hatch, 0.80, 1.0)
    hint = 0.97 - 0.42 * (0.97 - layers.ground)
    edges = layers.ground.mean(dim=1, keepdim=True)
    steps = F.pad(edges.diff(dim=-1).abs(), (0, 1)) + F.pad(edges.diff(dim=-2).abs(), (0, 0, 0, 1))
    hint = hint - 0.45 * (steps > 0.09).float()
    return torch.where(layers.lines > 0, 0.22, torch.where(layers.toys, pencil, hint)).clamp(0, 1)


def _watercolor(layers: Layers, draws: Draws) -> Tensor:
    """Thin paint that has run a little, in uneven washes that do not reach the rim of the paper."""
    side = layers.color.shape[-1]
    painted = torch.where(layers.toys, layers.color * (0.45 + 0.55 * layers.diffuse), layers.ground)
    painted = _blurred(painted, max(1, side // 40) | 1)
    wash = 0.62 + 0.38 * draws.clouds(side, 5)
    ticks = (torch.arange(side, device=painted.device) + 0.5) / side
    to_rim = torch.minimum(ticks, 1 - ticks)
    inside = torch.minimum(to_rim[:, None], to_rim[None, :]) + 0.06 * (draws.clouds(side, 9) - 0.5)
    cover = wash * ((inside - 0.02) / 0.05).clamp(0, 1)
    return 0.97 - cover * (0.97 - painted)


_DRAWERS: dict[str, Callable[[Layers, Draws], Tensor]] = {
    "photo": _photo,
    "sketch": _sketch,
    "cartoon": _cartoon,
    "watercolor": _watercolor,
}
_GRADES = {  # at the top and at the bottom of the image: factors on red, green and blue, and what is added to them
    "day": (((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))),
    "sunset": (((0.74, 0.62, 0.56), (0.24, 0.10, 0.02)), ((1.04, 0.86, 0.66), (0.0, 0.0, 0.0))),
    "night": (((0.40, 0.46, 0.74), (0.0, 0.0, 0.0)), ((0.52, 0.58, 0.84), (0.0, 0.0, 0.0))),
}


def _graded(scenes: Sequence[Scene], pictures: Tensor) -> Tensor:
    """The images under the light of their hour. The night sky is painted dark already."""
    hours = ["day" if scene.background == "night sky" else scene.time for scene in scenes]
    top, bottom = torch.tensor([_GRADES[hour] for hour in hours], device=pictures.device)[..., None].unbind(1)
    down = torch.linspace(0, 1, pictures.shape[-2], device=pictures.device)
    factor, added = torch.lerp(top, bottom, down)[..., None].unbind(1)  # [B, 3, S, 1] each
    return pictures * factor + added


def draw(scenes: Sequence[Scene], layers: Layers) -> Tensor:
    """Every scene in its own style, under the light of its hour: [B, 3, S, S] in [0, 1]."""
    pictures = torch.empty_like(layers.ground)
    for style in {scene.style for scene in scenes}:
        rows = [row for row, scene in enumerate(scenes) if scene.style == style]
        draws = Draws([scenes[row].backdrop_seed for row in rows], pictures.device)
        pictures[rows] = _DRAWERS[style](layers.picked(rows), draws)
    return _graded(scenes, pictures).clamp(0, 1)
