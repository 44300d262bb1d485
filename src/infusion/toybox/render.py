"""Scenes -> images with ground truth: masks, part labels, depth. Batched torch, on any device.

Ellipsoids under an orthographic camera have a closed form: along each ray a quadratic decides whether and where it
enters each solid; the nearest entry wins. Images are drawn at twice their size and averaged down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from infusion.toybox.backdrop import paint
from infusion.toybox.scene import MAX_TOYS, PARTS, PATTERNS, Camera, Scene, Toy
from infusion.toybox.styles import Layers, draw

_SUPERSAMPLING = 2
_AT_ONCE = {"cpu": 2, "cuda": 256}  # scenes in one pass; few stay within a processor's cache
_FAR = -1e9


@dataclass(frozen=True)
class Rendering:
    """What the camera sees, and what is true. B scenes, O toys at most, S pixels a side.

    images: [B, 3, S, S] in [0, 1]. masks: [B, O, S, S], the visible share of each pixel that toy o covers.
    depth: [B, S, S], towards the viewer, in toy heights, -inf where only backdrop is seen.
    parts: [B, S, S], index into `scene.PARTS`, -1 for the backdrop.
    """

    images: Tensor
    masks: Tensor
    depth: Tensor
    parts: Tensor


def _rotation_y(angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _rotation_x(angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def _view(camera: Camera) -> Tensor:
    """World directions -> camera directions (x right, y up, z towards the viewer), [3, 3]."""
    return _rotation_x(camera.elevation) @ _rotation_y(-camera.azimuth)


@dataclass
class _Solids:
    """All ellipsoids of a batch, P per scene (padded with solids that no ray can hit)."""

    centre: Tensor  # [B, P, 3] camera frame, in half image heights
    axes: Tensor  # [B, P, 3, 3] toy frame -> camera frame
    radii: Tensor  # [B, P, 3]
    toy: Tensor  # [B, P] which toy
    part: Tensor  # [B, P] index into PARTS
    color: Tensor  # [B, P, 3]
    local: Tensor  # [B, P, 3] centre in the toy's own frame, in toy heights
    scale: Tensor  # [B, P] half image heights per toy height
    pattern: Tensor  # [B, P] index into PATTERNS
    second_color: Tensor  # [B, P, 3]
    pattern_axis: Tensor  # [B, P, 3] unit vector in the toy's frame
    frequency: Tensor  # [B, P]
    phase: Tensor  # [B, P]

    def picked(self, *index: Tensor) -> "_Solids":
        return _Solids(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def _toy_solids(toy: Toy, camera: Camera, index: int) -> dict[str, Tensor]:
    solids = toy.ellipsoids()
    view = _view(camera)
    axes = view @ _rotation_y(toy.yaw)
    place = view @ (torch.tensor(toy.position) - torch.tensor(camera.target)) / camera.half_height
    scale = toy.size / camera.half_height
    local = torch.tensor([solid.centre for solid in solids], dtype=torch.float32)
    pattern = toy.individual.pattern
    painted = [PATTERNS.index(pattern.kind) if solid.part == "body" else 0 for solid in solids]
    number = len(solids)

    def same(values: Sequence[float] | float) -> Tensor:
        value = torch.tensor(values, dtype=torch.float32)
        return value.expand(number, *value.shape)

    return {
        "centre": local @ axes.T * scale + place,
        "axes": axes.expand(number, 3, 3),
        "radii": torch.tensor([solid.radii for solid in solids], dtype=torch.float32) * scale,
        "toy": torch.full((number,), index),
        "part": torch.tensor([PARTS.index(solid.part) for solid in solids]),
        "color": torch.tensor([toy.part_color(solid.part) for solid in solids]),
        "local": local,
        "scale": same(scale),
        "pattern": torch.tensor(painted),
        "second_color": same(pattern.color),
        "pattern_axis": F.normalize(same(pattern.axis), dim=-1),
        "frequency": same(pattern.frequency),
        "phase": same(pattern.phase),
    }


def _solids(scenes: Sequence[Scene], device: torch.device | str) -> _Solids:
    """Each scene's solids one after the other, padded to the length of the longest."""
    per_scene = []
    for scene in scenes:
        toys = [_toy_solids(toy, scene.camera, index) for index, toy in enumerate(scene.toys)]
        per_scene.append({name: torch.cat([toy[name] for toy in toys]) for name in toys[0]})

    def stacked(name: str) -> Tensor:
        padding = 1 if name == "radii" else 0  # axes of 0: the quadratic of every ray is 0, and hits nothing
        return pad_sequence([rows[name] for rows in per_scene], batch_first=True, padding_value=padding).to(device)

    return _Solids(**{name: stacked(name) for name in per_scene[0]})


def _pixel_grid(side: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """x to the right and y up at pixel centres, both [side * side], in [-1, 1]."""
    ticks = (torch.arange(side, device=device) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(-ticks, ticks, indexing="ij")
    return x.reshape(-1), y.reshape(-1)


def _quadratics(solids: _Solids) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of every solid's ray equation a t^2 + 2 b t + c = 0 as polynomials in the pixel (x, y).

    Returns a [B, P]; b over (1, x, y) [B, P, 3]; the discriminant b^2 - a c over (1, x, y, xx, yy, xy) [B, P, 6].
    """
    # In the solid's unit-sphere coordinates a ray is start + x * right + y * up + t * towards.
    to_unit = solids.axes.transpose(-1, -2) / solids.radii[..., None]
    right, up, towards = to_unit.unbind(-1)
    start = -(to_unit @ solids.centre[..., None])[..., 0]

    def dot(p: Tensor, q: Tensor) -> Tensor:
        return (p * q).sum(-1)

    a = dot(towards, towards)
    b = torch.stack([dot(v, towards) for v in (start, right, up)], dim=-1)
    c = [dot(start, start) - 1, 2 * dot(start, right), 2 * dot(start, up)]
    c += [dot(right, right), dot(up, up), 2 * dot(right, up)]
    b0, bx, by = b.unbind(-1)
    b_squared = [b0 * b0, 2 * b0 * bx, 2 * b0 * by, bx * bx, by * by, 2 * bx * by]
    discriminant = torch.stack([p - a * q for p, q in zip(b_squared, c, strict=True)], dim=-1)
    return a, b, discriminant


def _first_hits(solids: _Solids, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest entry along every ray: depth [B, R] (_FAR where nothing is hit) and solid index [B, R]."""
    a, b, discriminant = _quadratics(solids)
    pixels = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y])
    depths, hits = [], []
    for row in range(len(a)):  # one scene at a time stays within the processor's cache
        inside = discriminant[row] @ pixels
        entry = inside.clamp(min=0).sqrt_().sub_(b[row] @ pixels[:3]).div_(a[row, :, None])
        depth, hit = entry.masked_fill_(inside <= 0, _FAR).max(dim=0)
        depths.append(depth)
        hits.append(hit)
    return torch.stack(depths), torch.stack(hits)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """values [B, P, ...] at index [B, R] -> [B, R, ...]."""
    rows = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[rows, index]


def _selects(solid: _Solids, where: Tensor) -> Tensor:
    """How much of the pattern's second colour the points `where` [N, 3] of the toys' frames get, [N] in [0, 1].

    `solid` holds for every point the solid it lies on. The second colour nearly always covers the smaller part, so that
    the first is the toy's colour; from some sides of some toys it is the larger one.
    """
    share = torch.zeros_like(solid.frequency)
    angles = solid.frequency[:, None] * where + solid.phase[:, None]
    along = (where * solid.pattern_axis).sum(-1)
    for number, kind in enumerate(PATTERNS):
        chosen = solid.pattern == number
        x, y, z = angles[chosen].unbind(-1)
        if kind == "striped":
            share[chosen] = (torch.sin((solid.frequency * along + solid.phase)[chosen]) > 0.35).float()
        elif kind == "spotted":
            share[chosen] = (torch.cos(x) + torch.cos(y) + torch.cos(z) > 0.8).float()
        elif kind == "patchy":
            waves = torch.sin(x + 1.3 * y) + torch.sin(y - 0.8 * z + 2) + torch.sin(1.1 * z + x)
            share[chosen] = (waves > 0.55).float()
        elif kind == "gradient":
            height = along[chosen] - 0.7 * solid.pattern_axis[chosen, 1]
            share[chosen] = (0.25 + 1.1 * height).clamp(0, 1)
    return share


def _lamps(scenes: Sequence[Scene], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Directions towards the lamps [B, 3] and ambient shares [B]."""
    lights = [scene.light for scene in scenes]
    directions = [
        (
            math.cos(light.elevation) * math.sin(light.azimuth),
            math.sin(light.elevation),
            math.cos(light.elevation) * math.cos(light.azimuth),
        )
        for light in lights
    ]
    return torch.tensor(directions, device=device), torch.tensor([light.ambient for light in lights], device=device)


def _spread(values: Tensor, seen: Tensor) -> Tensor:
    """values [N] or [N, C] of the rays where seen [B, R] -> images [B, C, S, S], 0 elsewhere."""
    picture = values.new_zeros(*seen.shape, *values.shape[1:])
    picture[seen] = values
    side = math.isqrt(seen.shape[1])
    return picture.view(len(seen), side, side, -1).permute(0, 3, 1, 2)


def _layers(scenes: Sequence[Scene], solids: _Solids, depth: Tensor, hit: Tensor, x: Tensor, y: Tensor) -> Layers:
    side = math.isqrt(len(x))
    seen = depth > _FAR / 2
    row, ray = seen.nonzero(as_tuple=True)
    solid = solids.picked(row, hit[seen])
    point = torch.stack([x[ray], y[ray], depth[seen]], dim=-1) - solid.centre
    inside = (solid.axes.transpose(-1, -2) @ point[..., None])[..., 0]
    normal = F.normalize((solid.axes @ (inside / solid.radii**2)[..., None])[..., 0], dim=-1)
    share = _selects(solid, inside / solid.scale[:, None] + solid.local)[:, None]
    color = solid.color * (1 - share) + solid.second_color * share
    directions, ambients = _lamps(scenes, depth.device)
    lamp, ambient = directions[row], ambients[row]
    halfway = F.normalize(lamp + torch.tensor([0.0, 0.0, 1.0], device=depth.device), dim=-1)
    diffuse = ambient + (1.05 - ambient) * (normal * lamp).sum(-1).clamp(min=0)
    highlight = 0.18 * (normal * halfway).sum(-1).clamp(min=0) ** 24
    backdrops = paint([(scene.background, scene.backdrop_seed) for scene in scenes], side, depth.device)
    return Layers(
        ground=backdrops * _shadows(scenes, x, y).view(-1, 1, side, side),
        toys=seen.view(-1, 1, side, side),
        color=_spread(color, seen),
        diffuse=_spread(diffuse, seen),
        highlight=_spread(highlight, seen),
        lines=_outlines(solids, depth, hit, side),
    )


def _shadows(scenes: Sequence[Scene], x: Tensor, y: Tensor) -> Tensor:
    """Soft contact shadows as a factor on the backdrops, [B, R]."""
    factor = torch.ones(len(scenes), len(x), device=x.device)
    for row, scene in enumerate(scenes):
        for toy in scene.toys:
            if toy.position[1] > 0:  # it stands on another toy
                continue
            foot = _view(scene.camera) @ (torch.tensor(toy.position) - torch.tensor(scene.camera.target))
            centre = (foot / scene.camera.half_height).tolist()
            width = 0.48 * toy.size / scene.camera.half_height
            height = width * (0.22 + 0.6 * math.sin(scene.camera.elevation))
            distance = ((x - centre[0]) / width) ** 2 + ((y - centre[1]) / height) ** 2
            factor[row] *= 1 - 0.45 * torch.exp(-1.2 * distance)
    return factor


def _outlines(solids: _Solids, depth: Tensor, hit: Tensor, side: int) -> Tensor:
    """Where a drawn line goes: the rims of toys and of their parts, and of what stands out. [B, 1, S, S], 0 or 1."""
    seen = depth > _FAR / 2
    what = torch.where(seen, _take(solids.toy, hit) * len(PARTS) + _take(solids.part, hit), -1).view(-1, 1, side, side)
    far = depth.clamp(min=-3).view(-1, 1, side, side)
    lines = torch.zeros_like(far)
    for dim in (-1, -2):
        differs = (what.diff(dim=dim) != 0) | (far.diff(dim=dim).abs() > 0.12)
        lines.narrow(dim, 0, side - 1).masked_fill_(differs, 1)
    return lines


def _average_down(pictures: Tensor) -> Tensor:
    return F.avg_pool2d(pictures, _SUPERSAMPLING)


def _render(scenes: Sequence[Scene], size_px: int, device: torch.device | str) -> Rendering:
    side = size_px * _SUPERSAMPLING
    x, y = _pixel_grid(side, device)
    solids = _solids(scenes, device)
    depth, hit = _first_hits(solids, x, y)
    images = draw(scenes, _layers(scenes, solids, depth, hit, x, y))
    seen = depth > _FAR / 2
    toy = torch.where(seen, _take(solids.toy, hit), -1).reshape(-1, 1, side, side)
    masks = torch.cat([(toy == number).float() for number in range(MAX_TOYS)], dim=1)
    coarse = (slice(None), slice(None, None, _SUPERSAMPLING), slice(None, None, _SUPERSAMPLING))
    parts = torch.where(seen, _take(solids.part, hit), -1).reshape(-1, side, side)[coarse]
    half_heights = torch.tensor([scene.camera.half_height for scene in scenes], device=device)[:, None]
    depths = torch.where(seen, depth * half_heights, -math.inf).reshape(-1, side, side)[coarse]
    return Rendering(_average_down(images), _average_down(masks), depths, parts)


def render(scenes: Sequence[Scene], size_px: int = 64, device: torch.device | str = "cpu") -> Rendering:
    """Draw scenes as square images of `size_px` pixels a side, with their ground truth."""
    several = _AT_ONCE[torch.device(device).type]
    drawn = [_render(scenes[i : i + several], size_px, device) for i in range(0, len(scenes), several)]
    return Rendering(*(torch.cat([getattr(one, field.name) for one in drawn]) for field in fields(Rendering)))
