"""Names of backgrounds -> their images. What varies within a background is drawn from a seed."""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class Draws:
    """Draws the same thing for each of B images from its own generator, as tensors that spread over [B, 1, S, S]."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str):
        self.generators = [random.Random(seed) for seed in seeds]
        self.device = device

    def uniform(self, low: float, high: float) -> Tensor:
        values = [rng.uniform(low, high) for rng in self.generators]
        return torch.tensor(values, device=self.device).view(-1, 1, 1, 1)

    def clouds(self, side: int, cells: int = 6) -> Tensor:
        """Smooth noise in [0, 1], [B, 1, S, S]."""
        values = [[[rng.random() for _ in range(cells)] for _ in range(cells)] for rng in self.generators]
        coarse = torch.tensor(values, device=self.device)[:, None]
        return F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True).clamp(0, 1)

    def color(self, among: Sequence[tuple[float, float, float]]) -> Tensor:
        colors = [rng.choice(among) for rng in self.generators]
        return torch.tensor(colors, device=self.device).view(-1, 3, 1, 1)


def _rgb(red: float, green: float, blue: float, like: Tensor) -> Tensor:
    return torch.tensor([red, green, blue], device=like.device).view(3, 1, 1)


def _beach(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    horizon = draws.uniform(0.34, 0.46)
    shore = horizon + draws.uniform(0.12, 0.18) + 0.02 * torch.sin(7 * x + draws.uniform(0, 6))
    sky = _rgb(0.52, 0.78, 0.97, x) * (1.05 - 0.25 * (1 - y))
    sea = _rgb(0.08, 0.48, 0.74, x) + 0.05 * torch.sin(60 * y)
    sand = _rgb(0.94, 0.84, 0.60, x) * (0.94 + 0.10 * draws.clouds(len(x)))
    return torch.where(y < horizon, sky, torch.where(y < shore, sea, sand))


def _forest(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    ground = draws.uniform(0.58, 0.70)
    trunks = torch.sin(x * draws.uniform(24, 30) + draws.uniform(0, 6)) > 0.72
    leaves = _rgb(0.09, 0.36, 0.12, x) * (0.55 + 0.8 * draws.clouds(len(x), 8))
    trees = torch.where(trunks & (y > 0.12), _rgb(0.27, 0.16, 0.09, x) * torch.ones_like(x), leaves)
    return torch.where(y < ground, trees, _rgb(0.16, 0.44, 0.14, x) * (0.85 + 0.25 * draws.clouds(len(x))))


def _snow(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    hill = draws.uniform(0.42, 0.55) + 0.06 * torch.sin(4 * x + draws.uniform(0, 6))
    sky = _rgb(0.66, 0.76, 0.90, x) * (0.9 + 0.2 * y)
    return torch.where(y < hill, sky, _rgb(0.95, 0.97, 1.0, x) * (0.95 + 0.05 * draws.clouds(len(x))))


def _desert(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    dune = draws.uniform(0.40, 0.50) + 0.07 * torch.sin(5 * x + draws.uniform(0, 6))
    near = dune + 0.22 + 0.05 * torch.sin(4 * x + draws.uniform(0, 6))
    sky = _rgb(0.99, 0.83, 0.58, x) * (0.85 + 0.25 * y)
    far_sand = _rgb(0.84, 0.55, 0.26, x) * torch.ones_like(x)
    return torch.where(y < dune, sky, torch.where(y < near, far_sand, _rgb(0.92, 0.66, 0.34, x) * torch.ones_like(x)))


def _night_sky(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    picture = _rgb(0.03, 0.04, 0.18, x) * (0.7 + 0.9 * draws.clouds(len(x))) + _rgb(0.06, 0.02, 0.10, x) * y
    for _ in range(16):
        distance = (x - draws.uniform(0, 1)) ** 2 + (y - draws.uniform(0, 1)) ** 2
        picture = picture + _rgb(0.95, 0.92, 0.75, x) * torch.exp(-distance / 0.00012)
    moon = (x - draws.uniform(0.1, 0.9)) ** 2 + (y - draws.uniform(0.08, 0.2)) ** 2
    return torch.where(moon < 0.0036, _rgb(0.97, 0.95, 0.82, x) * torch.ones_like(x), picture)


def _wooden_floor(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    across = y * 6 + draws.uniform(0, 1)
    plank = across.floor()
    tone = 0.86 + 0.10 * torch.sin(plank * 2.4 + draws.uniform(0, 6))
    grain = 0.05 * torch.sin(x * 14 + 5 * torch.sin(plank * 1.7) + 4 * draws.clouds(len(x)))
    seam = (across % 1 < 0.06) | ((x * 2 + 0.5 * (plank % 2)) % 1 < 0.02)
    return _rgb(0.66, 0.43, 0.23, x) * (tone + grain) * torch.where(seam, 0.6, 1.0)


def _brick_wall(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    down = y * 8 + draws.uniform(0, 1)
    row = down.floor()
    across = (x * 4 + 0.5 * (row % 2) + draws.uniform(0, 1)) % 1
    mortar = (across < 0.07) | (down % 1 < 0.14)
    bricks = _rgb(0.64, 0.25, 0.18, x) * (0.85 + 0.25 * draws.clouds(len(x), 8))
    return torch.where(mortar, _rgb(0.78, 0.74, 0.70, x) * torch.ones_like(x), bricks)


def _water(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    swell = torch.sin(y * 38 + 3 * torch.sin(x * 7 + draws.uniform(0, 6)) + 3 * draws.clouds(len(x)))
    return _rgb(0.10, 0.46, 0.72, x) * (0.95 + 0.22 * swell)


def _meadow(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    horizon = draws.uniform(0.40, 0.52) + 0.03 * torch.sin(5 * x + draws.uniform(0, 6))
    sky = _rgb(0.50, 0.76, 0.97, x) + 0.35 * (draws.clouds(len(x)) - 0.55).clamp(min=0)
    picture = torch.where(y < horizon, sky, _rgb(0.42, 0.74, 0.24, x) * (0.85 + 0.3 * draws.clouds(len(x))))
    for _ in range(10):
        flower = (x - draws.uniform(0, 1)) ** 2 + (y - draws.uniform(0.6, 1.0)) ** 2
        petals = draws.color(((0.98, 0.92, 0.25), (0.98, 0.98, 0.98), (0.95, 0.45, 0.65)))
        picture = torch.where(flower < 0.0004, petals, picture)
    return picture


def _checkered_floor(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    tiles = ((x * 5 + draws.uniform(0, 1)).floor() + (y * 5 + draws.uniform(0, 1)).floor()) % 2
    return torch.where(tiles > 0, _rgb(0.90, 0.90, 0.88, x), _rgb(0.22, 0.24, 0.30, x) * torch.ones_like(x))


_PAINTERS: dict[str, Callable[[Tensor, Tensor, Draws], Tensor]] = {
    "beach": _beach,
    "forest": _forest,
    "snow": _snow,
    "desert": _desert,
    "night sky": _night_sky,
    "wooden floor": _wooden_floor,
    "brick wall": _brick_wall,
    "water": _water,
    "meadow": _meadow,
    "checkered floor": _checkered_floor,
}


def paint(backdrops: Sequence[tuple[str, int]], side: int, device: torch.device | str = "cpu") -> Tensor:
    """Backdrops (name, seed) as [B, 3, side, side] in [0, 1]; y runs downwards from 0 to 1."""
    ticks = (torch.arange(side, device=device) + 0.5) / side
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    pictures = torch.empty(len(backdrops), 3, side, side, device=device)
    for name in dict.fromkeys(name for name, _ in backdrops):
        rows = [row for row, (other, _) in enumerate(backdrops) if other == name]
        draws = Draws([backdrops[row][1] for row in rows], device)
        pictures[rows] = _PAINTERS[name](x, y, draws).expand(len(rows), 3, side, side)
    return pictures.clamp_(0, 1)
