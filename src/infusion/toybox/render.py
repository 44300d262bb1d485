"""Scenes -> pictures with ground truth: masks, part labels, depth. Batched torch, on any device.

Ellipsoids under an orthographic camera have a closed form: along each ray a quadratic decides whether and where it
enters each solid; the nearest entry wins. Pictures are drawn at twice their size and averaged down.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infusion.toybox.backdrop import paint
from infusion.toybox.scene import PARTS, Camera, Light, Scene, Toy

MAX_TOYS = 2
_SUPERSAMPLING = 2
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

    centre: Tensor  # [B, P, 3] camera frame, in half picture heights
    axes: Tensor  # [B, P, 3, 3] toy frame -> camera frame
    radii: Tensor  # [B, P, 3]
    toy: Tensor  # [B, P] which toy
    part: Tensor  # [B, P] index into PARTS
    color: Tensor  # [B, P, 3]
    local: Tensor  # [B, P, 3] centre in the toy's own frame, in toy heights
    scale: Tensor  # [B, P] half picture heights per toy height


def _toy_solids(toy: Toy, camera: Camera, index: int) -> dict[str, list]:
    view = _view(camera)
    axes = view @ _rotation_y(toy.yaw)
    place = torch.tensor([toy.position[0], 0.0, toy.position[1]]) - torch.tensor(camera.target)
    scale = toy.size / camera.half_height
    rows: dict[str, list] = {name: [] for name in _Solids.__annotations__}
    for solid in toy.individual.ellipsoids():
        local = torch.tensor(solid.centre, dtype=torch.float32)
        rows["centre"].append(axes @ local * scale + view @ place / camera.half_height)
        rows["axes"].append(axes)
        rows["radii"].append(torch.tensor(solid.radii, dtype=torch.float32) * scale)
        rows["toy"].append(torch.tensor(index))
        rows["part"].append(torch.tensor(PARTS.index(solid.part)))
        rows["color"].append(torch.tensor(toy.individual.part_color(solid.part)))
        rows["local"].append(local)
        rows["scale"].append(torch.tensor(scale))
    return rows


def _solids(scenes: Sequence[Scene], device: torch.device | str) -> _Solids:
    per_scene: list[dict[str, list]] = []
    for scene in scenes:
        rows: dict[str, list] = {name: [] for name in _Solids.__annotations__}
        for index, toy in enumerate(scene.toys):
            for name, values in _toy_solids(toy, scene.camera, index).items():
                rows[name].extend(values)
        per_scene.append(rows)
    width = max(len(rows["toy"]) for rows in per_scene)
    for rows in per_scene:
        missing = width - len(rows["toy"])
        for name, values in rows.items():
            values.extend([values[0]] * missing if name != "centre" else [torch.full((3,), 1e3)] * missing)
    stacked = {name: torch.stack([torch.stack(rows[name]) for rows in per_scene]) for name in per_scene[0]}
    return _Solids(**{name: tensor.to(device) for name, tensor in stacked.items()})


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


def _selects(toy: Toy, where: Tensor) -> Tensor:
    """How much of the pattern's second colour the points `where` [R, 3] of a body get, [R] in [0, 1]."""
    pattern = toy.individual.pattern
    axis = F.normalize(torch.tensor(pattern.axis, device=where.device), dim=0)
    along = where @ axis
    if pattern.kind == "striped":
        return (torch.sin(pattern.frequency * along + pattern.phase) > 0.1).float()
    if pattern.kind == "spotted":
        cells = torch.cos(pattern.frequency * where + pattern.phase).sum(-1)
        return (cells > 0.9).float()
    if pattern.kind == "patchy":
        x, y, z = (pattern.frequency * where + pattern.phase).unbind(-1)
        return (torch.sin(x + 1.3 * y) + torch.sin(y - 0.8 * z + 2) + torch.sin(1.1 * z + x) > 0.35).float()
    if pattern.kind == "gradient":
        middle = (where - torch.tensor([0.0, 0.7, 0.0], device=where.device)) @ axis
        return (0.5 + 1.1 * middle).clamp(0, 1)
    return torch.zeros_like(along)


def _shade(color: Tensor, normal: Tensor, light: Light) -> Tensor:
    """Lambert plus a small highlight; color, normal: [R, 3]."""
    cos = math.cos(light.elevation)
    lamp = torch.tensor(
        [cos * math.sin(light.azimuth), math.sin(light.elevation), cos * math.cos(light.azimuth)],
        device=color.device,
    )
    halfway = F.normalize(lamp + torch.tensor([0.0, 0.0, 1.0], device=color.device), dim=0)
    diffuse = light.ambient + (1.05 - light.ambient) * (normal @ lamp).clamp(min=0)
    highlight = 0.18 * (normal @ halfway).clamp(min=0) ** 24
    return (color * diffuse[:, None] + highlight[:, None]).clamp(0, 1)


def _shadow(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
    """Soft contact shadows as a factor on the backdrop, [R]."""
    factor = torch.ones_like(x)
    for toy in scene.toys:
        foot = torch.tensor([toy.position[0], 0.0, toy.position[1]]) - torch.tensor(scene.camera.target)
        centre = _view(scene.camera) @ foot / scene.camera.half_height
        width = 0.48 * toy.size / scene.camera.half_height
        height = width * (0.22 + 0.6 * math.sin(scene.camera.elevation))
        distance = ((x - centre[0]) / width) ** 2 + ((y - centre[1]) / height) ** 2
        factor = factor * (1 - 0.45 * torch.exp(-1.2 * distance))
    return factor


def _draw(scene: Scene, backdrop: Tensor, depth: Tensor, hit: Tensor, solids: _Solids, x: Tensor, y: Tensor) -> Tensor:
    """One scene at full sampling: [3, R]. depth [R], hit: per-ray rows of `solids` (already taken)."""
    colors = (backdrop.reshape(3, -1) * _shadow(scene, x, y)).T.clone()
    seen = depth > _FAR / 2
    index = hit[seen]
    point = torch.stack([x[seen], y[seen], depth[seen]], dim=-1) - solids.centre[0, index]
    axes, radii = solids.axes[0, index], solids.radii[0, index]
    local = (axes.transpose(-1, -2) @ point[..., None])[..., 0]
    normal = F.normalize((axes @ (local / radii**2)[..., None])[..., 0], dim=-1)
    where = local / solids.scale[0, index][:, None] + solids.local[0, index]
    color = solids.color[0, index]
    for number, toy in enumerate(scene.toys):
        body = (solids.toy[0, index] == number) & (solids.part[0, index] == PARTS.index("body"))
        share = _selects(toy, where[body])[:, None]
        second = torch.tensor(toy.individual.pattern.color, device=color.device)
        color[body] = color[body] * (1 - share) + second * share
    colors[seen] = _shade(color, normal, scene.light)
    return colors.T


def _average_down(pictures: Tensor) -> Tensor:
    return F.avg_pool2d(pictures, _SUPERSAMPLING)


def render(scenes: Sequence[Scene], size_px: int = 64, device: torch.device | str = "cpu") -> Rendering:
    """Draw scenes as square pictures of `size_px` pixels a side, with their ground truth."""
    side = size_px * _SUPERSAMPLING
    x, y = _pixel_grid(side, device)
    solids = _solids(scenes, device)
    depth, hit = _first_hits(solids, x, y)
    seen = depth > _FAR / 2
    pictures = []
    for row, scene in enumerate(scenes):
        one = _Solids(**{name: getattr(solids, name)[row : row + 1] for name in _Solids.__annotations__})
        backdrop = paint(scene.background, side, random.Random(scene.backdrop_seed), device)
        pictures.append(_draw(scene, backdrop, depth[row], hit[row], one, x, y))
    images = torch.stack(pictures).reshape(-1, 3, side, side)
    toy = torch.where(seen, _take(solids.toy, hit), -1).reshape(-1, 1, side, side)
    masks = torch.cat([(toy == number).float() for number in range(MAX_TOYS)], dim=1)
    coarse = (slice(None), slice(None, None, _SUPERSAMPLING), slice(None, None, _SUPERSAMPLING))
    parts = torch.where(seen, _take(solids.part, hit), -1).reshape(-1, side, side)[coarse]
    half_heights = torch.tensor([scene.camera.half_height for scene in scenes], device=device)[:, None]
    depths = torch.where(seen, depth * half_heights, -math.inf).reshape(-1, side, side)[coarse]
    return Rendering(_average_down(images), _average_down(masks), depths, parts)
