"""A seed -> Scene: which toys stand where, under which light, before which camera.

The world is three-dimensional and every fact of it is known. World axes: x right, y up, z towards a viewer at
azimuth 0; toys stand on the plane y = 0; lengths are in toy heights, angles in radians.

A toy is a set of ellipsoids in its own frame (it looks along +z). An *individual* is what no caption can call: its
pattern with the pattern's own colour and scale, the colours of its parts, its proportions. Class, colour, size,
accessory, number, relation, place, time of day and style of drawing are facts that captions name.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

RGB = tuple[float, float, float]
Vector = tuple[float, float, float]


class Ellipsoid(NamedTuple):
    """One solid of a toy: centre and radii in the toy's frame, and the part it belongs to."""

    centre: Vector
    radii: Vector
    part: str


class Anchor(NamedTuple):
    """Where a toy wears things, in its frame, and how wide it is there."""

    place: Vector
    width: float


PARTS = ("body", "accent", "dark", "accessory")


def _one(part: str, centre: Vector, radii: Vector) -> list[Ellipsoid]:
    return [Ellipsoid(centre, radii, part)]


def _pair(part: str, centre: Vector, radii: Vector) -> list[Ellipsoid]:
    x, y, z = centre
    return [Ellipsoid((side * x, y, z), radii, part) for side in (1, -1)]


CLASSES: dict[str, tuple[Ellipsoid, ...]] = {
    "cat": (
        *_one("body", (0, -0.28, -0.05), (0.33, 0.40, 0.38)),
        *_one("body", (0, 0.26, 0.12), (0.37, 0.30, 0.30)),
        *_pair("body", (0.24, 0.56, 0.10), (0.10, 0.22, 0.08)),
        *_pair("dark", (0.15, 0.31, 0.38), (0.06, 0.08, 0.05)),
        *_one("accent", (0, 0.17, 0.40), (0.12, 0.08, 0.06)),
        *_pair("body", (0.18, -0.60, 0.22), (0.11, 0.10, 0.17)),
        *_one("body", (0.44, -0.15, -0.28), (0.08, 0.42, 0.08)),
    ),
    "dog": (
        *_one("body", (0, -0.25, -0.08), (0.36, 0.34, 0.48)),
        *_one("body", (0, 0.26, 0.18), (0.31, 0.31, 0.28)),
        *_pair("accent", (0.33, 0.20, 0.12), (0.10, 0.32, 0.16)),
        *_one("accent", (0, 0.14, 0.48), (0.15, 0.12, 0.18)),
        *_one("dark", (0, 0.20, 0.66), (0.06, 0.05, 0.05)),
        *_pair("dark", (0.12, 0.36, 0.42), (0.055, 0.065, 0.05)),
        *_pair("body", (0.21, -0.58, 0.22), (0.11, 0.14, 0.17)),
        *_pair("body", (0.21, -0.58, -0.34), (0.11, 0.14, 0.15)),
        *_one("accent", (0, 0.02, -0.58), (0.07, 0.26, 0.08)),
    ),
    "teddy bear": (
        *_one("body", (0, -0.28, 0), (0.40, 0.40, 0.36)),
        *_one("accent", (0, -0.30, 0.16), (0.27, 0.28, 0.24)),
        *_one("body", (0, 0.32, 0.05), (0.37, 0.33, 0.31)),
        *_pair("body", (0.31, 0.60, 0.03), (0.15, 0.15, 0.09)),
        *_one("accent", (0, 0.22, 0.34), (0.16, 0.12, 0.12)),
        *_one("dark", (0, 0.27, 0.45), (0.06, 0.04, 0.04)),
        *_pair("dark", (0.14, 0.40, 0.33), (0.05, 0.06, 0.05)),
        *_pair("body", (0.47, -0.10, 0.08), (0.22, 0.13, 0.13)),
        *_pair("body", (0.27, -0.60, 0.26), (0.15, 0.14, 0.22)),
    ),
    "rabbit": (
        *_one("body", (0, -0.38, 0), (0.34, 0.34, 0.36)),
        *_one("body", (0, 0.10, 0.10), (0.28, 0.27, 0.26)),
        *_pair("body", (0.13, 0.62, 0.05), (0.09, 0.38, 0.07)),
        *_pair("accent", (0.13, 0.62, 0.10), (0.05, 0.28, 0.05)),
        *_pair("dark", (0.12, 0.15, 0.33), (0.055, 0.07, 0.05)),
        *_one("accent", (0, 0.03, 0.36), (0.06, 0.05, 0.04)),
        *_one("accent", (0, -0.42, -0.40), (0.15, 0.15, 0.13)),
        *_pair("body", (0.19, -0.64, 0.26), (0.11, 0.09, 0.20)),
    ),
    "duck": (
        *_one("body", (0, -0.30, -0.05), (0.38, 0.33, 0.54)),
        *_one("body", (0, 0.24, 0.26), (0.27, 0.27, 0.26)),
        *_one("accent", (0, 0.17, 0.58), (0.17, 0.07, 0.20)),
        *_pair("dark", (0.14, 0.32, 0.44), (0.055, 0.065, 0.05)),
        *_pair("body", (0.36, -0.24, -0.12), (0.09, 0.20, 0.38)),
        *_one("body", (0, -0.10, -0.58), (0.14, 0.09, 0.18)),
    ),
    "elephant": (
        *_one("body", (0, -0.10, -0.12), (0.42, 0.40, 0.50)),
        *_one("body", (0, 0.24, 0.30), (0.30, 0.31, 0.28)),
        *_pair("accent", (0.44, 0.26, 0.20), (0.27, 0.33, 0.06)),
        *_one("body", (0, -0.08, 0.60), (0.09, 0.36, 0.10)),
        *_pair("dark", (0.15, 0.32, 0.52), (0.05, 0.06, 0.05)),
        *_pair("body", (0.24, -0.52, 0.16), (0.14, 0.22, 0.14)),
        *_pair("body", (0.24, -0.52, -0.36), (0.14, 0.22, 0.14)),
    ),
    "penguin": (
        *_one("body", (0, -0.14, 0), (0.37, 0.54, 0.32)),
        *_one("accent", (0, -0.16, 0.13), (0.28, 0.44, 0.25)),
        *_one("body", (0, 0.48, 0.03), (0.27, 0.25, 0.25)),
        *_one("accent", (0, 0.44, 0.32), (0.08, 0.06, 0.15)),
        *_pair("dark", (0.12, 0.54, 0.24), (0.05, 0.06, 0.05)),
        *_pair("body", (0.42, -0.10, 0), (0.08, 0.36, 0.16)),
        *_pair("dark", (0.17, -0.66, 0.18), (0.15, 0.06, 0.20)),
    ),
    "fish": (
        *_one("body", (0, 0, 0.06), (0.22, 0.38, 0.58)),
        *_one("accent", (0, 0.16, -0.66), (0.05, 0.28, 0.17)),
        *_one("accent", (0, -0.16, -0.66), (0.05, 0.28, 0.17)),
        *_pair("dark", (0.19, 0.10, 0.38), (0.06, 0.08, 0.08)),
        *_one("accent", (0, 0.38, -0.05), (0.04, 0.20, 0.28)),
        *_pair("accent", (0.22, -0.14, 0.10), (0.05, 0.10, 0.18)),
    ),
    "mushroom": (
        *_one("accent", (0, -0.32, 0), (0.21, 0.44, 0.21)),
        *_one("body", (0, 0.16, 0), (0.64, 0.36, 0.64)),
    ),
    "snowman": (
        *_one("body", (0, -0.42, 0), (0.42, 0.36, 0.42)),
        *_one("body", (0, 0.10, 0), (0.31, 0.29, 0.31)),
        *_one("body", (0, 0.50, 0), (0.23, 0.22, 0.23)),
        *_one("accent", (0, 0.48, 0.28), (0.05, 0.05, 0.18)),
        *_pair("dark", (0.09, 0.57, 0.18), (0.045, 0.05, 0.05)),
        *_one("dark", (0, 0.16, 0.30), (0.05, 0.05, 0.04)),
        *_one("dark", (0, 0.02, 0.30), (0.05, 0.05, 0.04)),
        *_one("dark", (0, 0.74, 0), (0.19, 0.14, 0.19)),
        *_one("dark", (0, 0.66, 0), (0.32, 0.04, 0.32)),
    ),
    "car": (
        *_one("body", (0, -0.24, 0), (0.40, 0.24, 0.82)),
        *_one("accent", (0, 0.06, -0.08), (0.33, 0.27, 0.44)),
        *_pair("dark", (0.36, -0.44, 0.46), (0.10, 0.21, 0.21)),
        *_pair("dark", (0.36, -0.44, -0.46), (0.10, 0.21, 0.21)),
    ),
    "airplane": (
        *_one("body", (0, 0, 0), (0.19, 0.20, 0.80)),
        *_pair("accent", (0.48, -0.02, 0.08), (0.46, 0.045, 0.20)),
        *_pair("accent", (0.20, 0.05, -0.66), (0.24, 0.035, 0.11)),
        *_one("accent", (0, 0.24, -0.66), (0.045, 0.26, 0.14)),
        *_one("dark", (0, 0.12, 0.50), (0.11, 0.11, 0.16)),
    ),
    "turtle": (
        *_one("body", (0, -0.30, -0.05), (0.50, 0.36, 0.56)),
        *_one("accent", (0, -0.42, -0.05), (0.55, 0.10, 0.61)),
        *_one("accent", (0, -0.10, 0.66), (0.19, 0.20, 0.20)),
        *_pair("dark", (0.10, -0.04, 0.81), (0.05, 0.06, 0.05)),
        *_pair("accent", (0.40, -0.57, 0.36), (0.15, 0.13, 0.18)),
        *_pair("accent", (0.40, -0.57, -0.42), (0.15, 0.13, 0.18)),
        *_one("accent", (0, -0.50, -0.68), (0.06, 0.06, 0.13)),
    ),
    "teapot": (
        *_one("body", (0, -0.25, 0), (0.46, 0.42, 0.46)),
        *_one("accent", (0, 0.14, 0), (0.28, 0.11, 0.28)),
        *_one("accent", (0, 0.29, 0), (0.08, 0.08, 0.08)),
        *_one("body", (0, -0.26, 0.52), (0.11, 0.12, 0.20)),
        *_one("body", (0, -0.06, 0.69), (0.08, 0.22, 0.09)),
        *_one("accent", (0, 0.00, -0.54), (0.06, 0.06, 0.16)),
        *_one("accent", (0, -0.19, -0.70), (0.06, 0.22, 0.07)),
        *_one("accent", (0, -0.40, -0.54), (0.06, 0.06, 0.16)),
        *_one("dark", (0, -0.65, 0), (0.30, 0.06, 0.30)),
    ),
    "robot": (
        *_one("body", (0, -0.18, 0), (0.36, 0.34, 0.27)),
        *_one("accent", (0, -0.16, 0.20), (0.20, 0.18, 0.11)),
        *_one("body", (0, 0.32, 0), (0.30, 0.22, 0.25)),
        *_one("dark", (0, 0.35, 0.16), (0.21, 0.09, 0.12)),
        *_pair("accent", (0.10, 0.35, 0.26), (0.05, 0.05, 0.04)),
        *_one("dark", (0, 0.60, 0), (0.03, 0.14, 0.03)),
        *_one("accent", (0, 0.76, 0), (0.08, 0.08, 0.08)),
        *_pair("dark", (0.44, -0.12, 0), (0.08, 0.28, 0.08)),
        *_pair("accent", (0.44, -0.44, 0.02), (0.11, 0.11, 0.11)),
        *_pair("dark", (0.17, -0.60, 0.03), (0.12, 0.16, 0.15)),
    ),
    "hot air balloon": (
        *_one("body", (0, 0.24, 0), (0.56, 0.54, 0.56)),
        *_one("accent", (0, -0.34, 0), (0.17, 0.10, 0.17)),
        *_pair("dark", (0.13, -0.46, 0), (0.025, 0.16, 0.025)),
        *_one("dark", (0, -0.63, 0), (0.19, 0.13, 0.19)),
    ),
}
TOPS: dict[str, Anchor] = {
    "cat": Anchor((0, 0.52, 0.10), 0.22),
    "dog": Anchor((0, 0.53, 0.14), 0.22),
    "teddy bear": Anchor((0, 0.61, 0.03), 0.22),
    "rabbit": Anchor((0, 0.34, 0.12), 0.20),
    "duck": Anchor((0, 0.47, 0.24), 0.20),
    "elephant": Anchor((0, 0.51, 0.26), 0.22),
    "penguin": Anchor((0, 0.69, 0.02), 0.20),
    "fish": Anchor((0, 0.33, 0.30), 0.16),
    "mushroom": Anchor((0, 0.49, 0), 0.24),
    "car": Anchor((0, 0.30, -0.08), 0.24),
    "airplane": Anchor((0, 0.17, 0.10), 0.16),
    "turtle": Anchor((0, 0.08, 0.64), 0.16),
}
NECKS: dict[str, Anchor] = {
    "cat": Anchor((0, 0.02, 0.06), 0.28),
    "dog": Anchor((0, -0.02, 0.10), 0.28),
    "teddy bear": Anchor((0, 0.05, 0.04), 0.29),
    "rabbit": Anchor((0, -0.12, 0.06), 0.26),
    "duck": Anchor((0, 0.01, 0.18), 0.24),
    "penguin": Anchor((0, 0.29, 0.03), 0.28),
    "snowman": Anchor((0, 0.31, 0), 0.25),
    "robot": Anchor((0, 0.12, 0), 0.25),
}

COLORS: dict[str, RGB] = {
    "red": (0.86, 0.11, 0.11),
    "orange": (0.96, 0.50, 0.08),
    "yellow": (0.96, 0.84, 0.15),
    "green": (0.14, 0.62, 0.20),
    "blue": (0.14, 0.30, 0.86),
    "purple": (0.54, 0.18, 0.74),
    "pink": (0.96, 0.54, 0.72),
    "white": (0.94, 0.94, 0.94),
    "brown": (0.42, 0.25, 0.12),
    "gray": (0.50, 0.50, 0.53),
}
DARK: RGB = (0.05, 0.05, 0.07)

BACKGROUNDS = (
    "beach",
    "forest",
    "snow",
    "desert",
    "night sky",
    "wooden floor",
    "brick wall",
    "water",
    "meadow",
    "checkered floor",
)
PATTERNS = ("plain", "striped", "spotted", "patchy", "gradient")
STYLES = ("photo", "sketch", "cartoon", "watercolor")
TIMES = ("day", "sunset", "night")
ACCESSORIES = ("hat", "crown", "scarf", "bow tie")
SIZES = ("small", "medium", "large")
RELATIONS = ("left of", "right of", "next to", "on top of")
MAX_TOYS = 3
TRAINING_SCENES = range(300_000)  # seeds of scenes that the base model may be trained on
HELD_OUT_SCENES = range(900_000, 1_000_000)  # seeds of scenes that neither the base model nor a judge is trained on
# Concept seeds from here on are for evaluation by others: never train, tune or test on them.
FIRST_RESERVED_CONCEPT = 1_000_000

_SIDE_VIEW = {"fish", "car", "airplane", "duck", "turtle", "teapot"}
_SIZE_RANGES = {"small": (0.55, 0.65), "medium": (0.92, 1.05), "large": (1.25, 1.35)}


@dataclass(frozen=True)
class Pattern:
    """How the body is painted: `kind` of `PATTERNS`; the second colour covers what the pattern selects.

    `axis` is a direction in the toy's frame, `frequency` in radians per toy height, `phase` in radians.
    """

    kind: str
    color: RGB
    axis: Vector
    frequency: float
    phase: float


@dataclass(frozen=True)
class Individual:
    """One particular toy: its class, and everything about its looks that captions leave open.

    `proportions` scales x, y, z of the whole toy; `accent_size` scales the accent parts about their centres.
    """

    class_noun: str
    body: RGB
    accent: RGB
    pattern: Pattern
    proportions: Vector
    accent_size: float

    def ellipsoids(self, worn: Sequence[Ellipsoid] = ()) -> list[Ellipsoid]:
        """The solids, and those it wears, with this individual's proportions, feet at y = 0."""

        def scaled(solid: Ellipsoid) -> Ellipsoid:
            size = self.accent_size if solid.part == "accent" else 1.0
            centre = tuple(c * p for c, p in zip(solid.centre, self.proportions, strict=True))
            radii = tuple(r * p * size for r, p in zip(solid.radii, self.proportions, strict=True))
            return Ellipsoid(centre, radii, solid.part)  # type: ignore[arg-type]

        solids = [scaled(solid) for solid in (*CLASSES[self.class_noun], *worn)]
        floor = min(s.centre[1] - s.radii[1] for s in solids)
        return [s._replace(centre=(s.centre[0], s.centre[1] - floor, s.centre[2])) for s in solids]

    def height(self) -> float:
        return max(s.centre[1] + s.radii[1] for s in self.ellipsoids())


@dataclass(frozen=True)
class Accessory:
    """Something a toy wears: `kind` of `ACCESSORIES` and its nameable colour."""

    kind: str
    color_name: str
    color: RGB


def _worn(accessory: Accessory, individual: Individual) -> list[Ellipsoid]:
    """The solids of an accessory at its wearer's anchor, in the frame of `CLASSES`."""
    anchors = TOPS if accessory.kind in ("hat", "crown") else NECKS
    (x, y, z), width = anchors[individual.class_noun]
    if accessory.kind == "hat":
        shape = [((x, y + 0.02, z), (1.35 * width, 0.045, 1.35 * width))]
        shape += [((x, y + 0.17, z), (0.8 * width, 0.21, 0.8 * width))]
    elif accessory.kind == "crown":
        shape = [((x, y + 0.05, z), (width, 0.10, width))]
        corners = [(0, 0.85), (0.85, 0), (-0.85, 0), (0, -0.85)]
        shape += [((x + a * width, y + 0.17, z + b * width), (0.055, 0.13, 0.055)) for a, b in corners]
    elif accessory.kind == "scarf":
        shape = [((x, y, z), (1.15 * width, 0.10, 1.15 * width))]
        shape += [((x + 0.5 * width, y - 0.20, z + width), (0.08, 0.22, 0.07))]
    else:
        front = z + 1.25 * width
        shape = [((x, y, front), (0.05, 0.06, 0.05))]
        shape += [((x + side * 0.14, y, front), (0.11, 0.11, 0.05)) for side in (1, -1)]
    return [Ellipsoid(centre, radii, "accessory") for centre, radii in shape]


@dataclass(frozen=True)
class Toy:
    """An individual placed in the world: position (x, y, z) of its feet, heading (yaw), size factor.

    `color_name` is the nameable colour of its body, `size_name` one of `SIZES`.
    """

    individual: Individual
    color_name: str
    position: Vector
    yaw: float
    size: float
    size_name: str = "medium"
    accessory: Accessory | None = None

    def ellipsoids(self) -> list[Ellipsoid]:
        """The toy's solids and those of what it wears, in its own frame: feet at y = 0, not yet scaled by `size`."""
        worn = _worn(self.accessory, self.individual) if self.accessory else []
        return self.individual.ellipsoids(worn)

    def part_color(self, part: str) -> RGB:
        if part == "accessory":
            assert self.accessory is not None
            return self.accessory.color
        return {"body": self.individual.body, "accent": self.individual.accent, "dark": DARK}[part]


@dataclass(frozen=True)
class Camera:
    """Orthographic: `half_height` is half the image's height in toy heights, `target` what it looks at."""

    azimuth: float
    elevation: float
    half_height: float
    target: Vector


@dataclass(frozen=True)
class Light:
    """A distant lamp, fixed to the camera, and an ambient share of the light."""

    azimuth: float
    elevation: float
    ambient: float


@dataclass(frozen=True)
class Scene:
    """All facts of one image.

    `relation` tells how toy 0 stands to toy 1; None unless there are two. Three toys stand in a row, toy 0 leftmost.
    `time` and `style` are of `TIMES` and `STYLES`. `backdrop_seed` draws what varies within a background (horizon,
    clouds, grain of the wood).
    """

    toys: tuple[Toy, ...]
    relation: str | None
    background: str
    time: str
    style: str
    backdrop_seed: int
    camera: Camera
    light: Light


def _jitter(rng: random.Random, color: RGB, amount: float) -> RGB:
    return tuple(min(1.0, max(0.0, c + rng.uniform(-amount, amount))) for c in color)  # type: ignore[return-value]


def _unit_vector(rng: random.Random) -> Vector:
    height, angle = rng.uniform(-1, 1), rng.uniform(0, 2 * math.pi)
    ring = math.sqrt(1 - height * height)
    return (ring * math.cos(angle), height, ring * math.sin(angle))


def _pattern(rng: random.Random, kind: str, color: RGB) -> Pattern:
    """Stripes run mostly across the body: rings or bars, which a small image can still show."""
    axis = _unit_vector(rng)
    if kind == "striped":
        axis = (0.25 * axis[0], 1.0, 0.25 * axis[2]) if rng.random() < 0.5 else (1.0, 0.25 * axis[1], 0.25 * axis[2])
    frequency = {"striped": rng.uniform(13, 19), "spotted": rng.uniform(10, 14)}.get(kind, rng.uniform(4, 7))
    return Pattern(kind, color, axis, frequency, rng.uniform(0, 2 * math.pi))


def _proportions(rng: random.Random) -> Vector:
    return (rng.uniform(0.9, 1.12), rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1))


def _lightened(color: RGB) -> RGB:
    return tuple(0.55 * c + 0.40 for c in color)  # type: ignore[return-value]


def _any_individual(rng: random.Random, class_noun: str, color_name: str) -> Individual:
    """A toy as the base model sees them by the thousand: any pattern, any odd part, at random."""
    body = _jitter(rng, COLORS[color_name], 0.06)
    other = rng.choice([name for name in COLORS if name != color_name])
    kind = "plain" if rng.random() < 0.55 else rng.choice(PATTERNS[1:])
    accent = _jitter(rng, COLORS[rng.choice(list(COLORS))], 0.06) if rng.random() < 0.35 else _lightened(body)
    pattern = _pattern(rng, kind, _jitter(rng, COLORS[other], 0.06))
    return Individual(class_noun, body, accent, pattern, _proportions(rng), rng.uniform(0.88, 1.15))


def _heading(rng: random.Random, class_noun: str) -> float:
    """Yaw as seen by the camera: long toys show their side, the others their face."""
    if class_noun in _SIDE_VIEW:
        return rng.choice((-1, 1)) * rng.uniform(0.75, 1.5)
    return rng.uniform(-0.9, 0.9)


def _camera(rng: random.Random, half_height: tuple[float, float], target: tuple[float, float]) -> Camera:
    azimuth, elevation = rng.uniform(-math.pi, math.pi), rng.uniform(0.08, 0.40)
    return Camera(azimuth, elevation, rng.uniform(*half_height), (0.0, rng.uniform(*target), 0.0))


def _place(view_x: float, view_z: float, azimuth: float) -> tuple[float, float]:
    """Ground position whose place before a camera of that azimuth is (view_x, view_z)."""
    cos, sin = math.cos(azimuth), math.sin(azimuth)
    return (cos * view_x + sin * view_z, -sin * view_x + cos * view_z)


def _toy(
    rng: random.Random,
    individual: Individual,
    color_name: str,
    camera: Camera,
    view_x: float,
    size_name: str = "medium",
    accessory: Accessory | None = None,
) -> Toy:
    x, z = _place(view_x, rng.uniform(-0.15, 0.15), camera.azimuth)
    yaw = camera.azimuth + _heading(rng, individual.class_noun)
    size = rng.uniform(*_SIZE_RANGES[size_name])
    return Toy(individual, color_name, (x, 0.0, z), yaw, size, size_name, accessory)


def _accessory(rng: random.Random, class_noun: str) -> Accessory | None:
    """A crown is golden; everything else has any colour."""
    kinds = ["hat", "crown"] * (class_noun in TOPS) + ["scarf", "bow tie"] * (class_noun in NECKS)
    if not kinds or rng.random() > 0.25:
        return None
    kind = rng.choice(kinds)
    color_name = "yellow" if kind == "crown" else rng.choice(list(COLORS))
    return Accessory(kind, color_name, _jitter(rng, COLORS[color_name], 0.05))


def _backdrop_and_light(rng: random.Random) -> tuple[int, Light]:
    return rng.randrange(2**31), Light(rng.uniform(-1.0, 1.0), rng.uniform(0.4, 1.1), rng.uniform(0.42, 0.55))


def _single(rng: random.Random) -> tuple[Camera, list[Toy], None]:
    camera = _camera(rng, (0.92, 1.15), (0.62, 0.85))
    class_noun, color_name = rng.choice(list(CLASSES)), rng.choice(list(COLORS))
    size_name = rng.choices(SIZES, (0.12, 0.76, 0.12))[0]
    if size_name == "large":
        camera = replace(camera, half_height=1.15, target=(0.0, 0.9, 0.0))
    who = _any_individual(rng, class_noun, color_name)
    accessory = _accessory(rng, class_noun)
    return camera, [_toy(rng, who, color_name, camera, rng.uniform(-0.2, 0.2), size_name, accessory)], None


def _several(rng: random.Random, places: Sequence[float], camera: Camera) -> list[Toy]:
    """Toys at these places from left to right; one time in five they are all of one class."""
    classes = rng.sample(list(CLASSES), len(places))
    if rng.random() < 0.2:
        classes = classes[:1] * len(places)
    toys = []
    for class_noun, view_x in zip(classes, places, strict=True):
        color_name = rng.choice(list(COLORS))
        who, accessory = _any_individual(rng, class_noun, color_name), _accessory(rng, class_noun)
        toys.append(_toy(rng, who, color_name, camera, view_x, "medium", accessory))
    return toys


def _pair_of_toys(rng: random.Random) -> tuple[Camera, list[Toy], str]:
    if rng.random() < 0.2:
        camera = _camera(rng, (1.45, 1.6), (1.15, 1.3))
        upper, lower = _several(rng, (0.0, 0.0), camera)
        x, _, z = lower.position
        on_top = (x, 0.93 * lower.individual.height() * lower.size, z)
        return camera, [replace(upper, position=on_top), replace(lower, accessory=None)], "on top of"
    side = rng.choice((-1, 1))
    camera = _camera(rng, (1.3, 1.5), (0.62, 0.85))
    toys = _several(rng, [side * rng.uniform(0.52, 0.68), -side * rng.uniform(0.52, 0.68)], camera)
    return camera, toys, "next to" if rng.random() < 0.3 else ("right of" if side > 0 else "left of")


def _three_toys(rng: random.Random) -> tuple[Camera, list[Toy], None]:
    camera = _camera(rng, (1.65, 1.8), (0.7, 0.9))
    return camera, _several(rng, [place + rng.uniform(-0.05, 0.05) for place in (-1.05, 0.0, 1.05)], camera), None


def sample_scene(seed: int, num_toys: int | None = None) -> Scene:
    """A scene of the base model's world.

    Args:
        seed: the same seed gives the same scene, on any machine. Those of `HELD_OUT_SCENES` are never trained on.
        num_toys: 1 to 3; by default 65% of scenes have one toy, 25% two, 10% three.
    """
    rng = random.Random(f"scene {seed}")
    drawn = rng.choices((1, 2, 3), (0.65, 0.25, 0.10))[0]
    camera, toys, relation = (_single, _pair_of_toys, _three_toys)[(num_toys or drawn) - 1](rng)
    background = rng.choice(BACKGROUNDS)
    time = rng.choices(TIMES, (0.76, 0.12, 0.12))[0]
    style = rng.choices(STYLES, (0.64, 0.12, 0.12, 0.12))[0]
    time = "night" if background == "night sky" else time
    backdrop_seed, light = _backdrop_and_light(rng)
    return Scene(tuple(toys), relation, background, time, style, backdrop_seed, camera, light)


def individual(seed: int, class_noun: str | None = None) -> Individual:
    """The individual a concept seed stands for: loud colours, a strong pattern, an odd accent.

    Concept seeds of `FIRST_RESERVED_CONCEPT` and above are reserved for evaluation by others.
    """
    rng = random.Random(f"individual {seed}")
    drawn = rng.choice(list(CLASSES))
    body, second, accent = rng.sample(["red", "orange", "yellow", "green", "blue", "purple", "pink", "white"], 3)
    pattern = _pattern(rng, rng.choice(("striped", "spotted", "patchy")), _jitter(rng, COLORS[second], 0.08))
    colors = (_jitter(rng, COLORS[body], 0.08), _jitter(rng, COLORS[accent], 0.08))
    return Individual(class_noun or drawn, *colors, pattern, _proportions(rng), rng.uniform(0.9, 1.15))


def concept_scene(who: Individual, seed: int, background: str, style: str = "photo", time: str = "day") -> Scene:
    """One image of an individual, alone, in a given place; pose, camera and light are drawn from `seed`."""
    rng = random.Random(f"concept scene {seed}")
    camera = _camera(rng, (0.92, 1.15), (0.62, 0.85))
    toy = _toy(rng, who, "", camera, rng.uniform(-0.15, 0.15))
    time = "night" if background == "night sky" else time
    backdrop_seed, light = _backdrop_and_light(rng)
    return Scene((toy,), None, background, time, style, backdrop_seed, camera, light)
