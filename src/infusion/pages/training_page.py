"""Results -> one page.

The page is a single HTML file: pictures, styles and the loss curve lie inside it, it has no script, and it
asks nothing of the network. What is on it is measured by the caller; this module only lays it out.
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from infusion.files import whole_file

_LOSSLESS_SIDE_PX = 256  # up to here a picture is stored exactly (PNG); above, as WebP
_PIXELATED_SIDE_PX = 48  # up to here a picture is enlarged with visible pixels; above, smoothly
_PAIRS_IN_A_ROW = 4


@dataclass(frozen=True)
class TrainingPicture:
    """One picture of the concept.

    mask: "L", any size, white = learnt; None: all of it. source: where the mask is from: "given", "alpha",
    "attention", or in other words. coverage: the mask's mean, 0 to 1.
    """

    image: Image.Image
    mask: Image.Image | None
    source: str
    coverage: float


@dataclass(frozen=True)
class Comparison:
    """One prompt, drawn by the base model and by the customized one; pictures i come from seeds[i]."""

    prompt: str
    seeds: Sequence[int]
    base_images: Sequence[Image.Image]
    customized_images: Sequence[Image.Image]

    def __post_init__(self) -> None:
        assert len(self.seeds) == len(self.base_images) == len(self.customized_images)


@dataclass(frozen=True)
class Untouched:
    """A prompt without the concept. largest_difference: the caller's measurement, of what `compared` says."""

    prompt: str
    seed: int
    base_image: Image.Image
    customized_image: Image.Image
    largest_difference: float
    compared: str = "pixel values"


@dataclass(frozen=True)
class Preview:
    """What the customized model drew after `step` training steps."""

    step: int
    images: Sequence[Image.Image]


@dataclass(frozen=True)
class Page:
    """Everything one page shows. facts, settings: label -> value, in the order they are to appear."""

    placeholder: str
    class_noun: str
    statement: str
    training_pictures: Sequence[TrainingPicture]
    comparisons: Sequence[Comparison]
    untouched: Sequence[Untouched]
    facts: Mapping[str, str]
    settings: Mapping[str, str]
    notes: Sequence[str] = ()
    loss_curve: Sequence[tuple[int, float]] = ()
    previews: Sequence[Preview] = ()
    preview_prompts: Sequence[str] = ()


def write_page(page: Page, path: str | Path) -> None:
    """Page -> one HTML file at `path`, whole or not at all. UserError when it cannot be written."""
    content = render_page(page).encode("utf-8", errors="replace")
    with whole_file(Path(path)) as temporary_path:
        temporary_path.write_bytes(content)


def render_page(page: Page) -> str:
    """Page -> HTML. All text is escaped: a prompt is shown as it was typed, whatever is in it."""
    return _template().render(page=page, loss=_loss_plot(page.loss_curve), pairs_in_a_row=_PAIRS_IN_A_ROW)


def describe_run(
    class_noun: str,
    num_pictures: int,
    max_train_steps: int,
    training_seconds: float,
    num_parameters: int,
    file_bytes: int,
    untouched: Sequence[Untouched] = (),
) -> str:
    """One sentence for the head of the page. It says that others are untouched only if that was measured."""
    pictures = f"{num_pictures} picture{'s' if num_pictures != 1 else ''} of one {class_noun}"
    steps = f"{max_train_steps:,} training step{'s' if max_train_steps != 1 else ''}"
    sentence = (
        f"Learnt from {pictures} in {steps} and {format_seconds(training_seconds)}: "
        f"{num_parameters:,} numbers in a file of {file_bytes:,} bytes"
    )
    if untouched and all(row.largest_difference == 0 for row in untouched):
        prompts = "1 prompt that does" if len(untouched) == 1 else f"{len(untouched)} prompts that do"
        sentence += f"; {prompts} not name it gave the base model's pictures, bit for bit"
    return sentence + "."


def format_count(num: int, noun: str) -> str:
    """ "1 seed", "1,200 seeds"."""
    return f"{num:,} {noun}{'s' if num != 1 else ''}"


def format_seconds(seconds: float) -> str:
    """3.21 -> "3.2 s", 112 -> "1 min 52 s", 7300 -> "2 h 2 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {whole_seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def grid(images: Sequence[Image.Image], columns: int, scale: int = 1) -> Image.Image:
    """Pictures -> one picture, row by row, each enlarged `scale` times."""
    return contact_sheet([images[i : i + columns] for i in range(0, len(images), columns)], scale=scale)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    scale: int = 1,
    gap_px: int = 4,
) -> Image.Image:
    """Rows of pictures -> one RGB picture on white, with labels to the left and above where there are any.

    Every cell is as large as the largest picture times `scale`; smaller ones stand in the middle of theirs.
    """
    pictures = [[_enlarged(image, scale) for image in row] for row in rows]
    assert any(pictures), "a contact sheet needs at least one picture"
    width = max(image.width for row in pictures for image in row)
    height = max(image.height for row in pictures for image in row)
    font_px = max(12, min(width, height) // 9)
    font = ImageFont.load_default(size=font_px)
    left = max((math.ceil(font.getlength(label)) + 3 * gap_px for label in row_labels), default=gap_px)
    top = round(font_px * 1.5) + gap_px if column_labels else gap_px
    columns = max(len(row) for row in pictures)
    size = (left + columns * (width + gap_px), top + len(pictures) * (height + gap_px))

    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(row_labels):
        draw.text((left - 2 * gap_px, top + i * (height + gap_px) + height / 2), label, "black", font, anchor="rm")
    for j, label in enumerate(column_labels):
        draw.text((left + j * (width + gap_px) + width / 2, top / 2), label, "black", font, anchor="mm")
    for i, row in enumerate(pictures):
        for j, image in enumerate(row):
            x = left + j * (width + gap_px) + (width - image.width) // 2
            y = top + i * (height + gap_px) + (height - image.height) // 2
            sheet.paste(image, (x, y))
    return sheet


def _enlarged(image: Image.Image, scale: int) -> Image.Image:
    pixelated = max(image.size) <= _PIXELATED_SIDE_PX
    resampling = Image.Resampling.NEAREST if pixelated else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((image.width * scale, image.height * scale), resampling)


# What the template calls.


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "data_uri": data_uri,
        "cut_out": _cut_out,
        "is_pixelated": lambda image: max(image.size) <= _PIXELATED_SIDE_PX,
        "pieces": pieces,
        "percent": _percent,
        "exact": _exact,
    }
    return environment.from_string(
        files("infusion.pages").joinpath("templates", "page.html.j2").read_text(encoding="utf-8")
    )


def data_uri(image: Image.Image) -> str:
    """A picture -> its bytes in a `data:` address."""
    stored = io.BytesIO()
    image = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
    if max(image.size) <= _LOSSLESS_SIDE_PX:
        image.save(stored, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(stored, "WEBP", quality=90)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(stored.getvalue()).decode('ascii')}"


def _cut_out(picture: TrainingPicture) -> Image.Image:
    """What is learnt of a training picture: the picture, as opaque as its mask is white."""
    cut = picture.image.convert("RGB")
    if picture.mask is not None:
        cut.putalpha(picture.mask.convert("L").resize(cut.size, Image.Resampling.BILINEAR))
    return cut


def pieces(prompt: str) -> list[tuple[str, bool]]:
    """A prompt -> its pieces, each with whether it is a concept's placeholder."""
    split = re.split(r"(<[^<>\s]+>)", prompt)  # with one group, every second piece is a match
    return [(piece, i % 2 == 1) for i, piece in enumerate(split) if piece]


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def _exact(difference: float) -> str:
    return "0 (bit-identical)" if difference == 0 else str(difference)


# The loss curve, in a box of 100 x 100; the page stretches it.


@dataclass(frozen=True)
class _Plot:
    points: str  # every loss, thinned to what can be seen; "x,y x,y ..." as SVG takes it
    trend: str  # its running mean
    loss_ticks: list[tuple[float, str]]  # height from the top in percent, label
    step_ticks: list[tuple[float, str]]  # distance from the left in percent, label
    description: str


def _loss_plot(curve: Sequence[tuple[int, float]], num_points: int = 400) -> _Plot | None:
    finite = [(step, loss) for step, loss in curve if math.isfinite(loss)]
    if len(finite) < 2:
        return None
    steps, losses = np.array(finite, dtype=float).T
    trend = _running_mean(losses, window=max(1, len(losses) // 15))
    first, last = steps[0], steps[-1]
    top_tick, tick = _nice_scale(float(losses.max()))

    def polyline(values: np.ndarray) -> str:
        bins = np.array_split(np.arange(len(values)), min(len(values), num_points))
        xy = [((steps[b].mean() - first) / max(1.0, last - first), values[b].mean() / top_tick) for b in bins]
        return " ".join(f"{100 * x:.2f},{100 * (1 - y):.2f}" for x, y in xy)

    loss_ticks = [(100 * (1 - i * tick / top_tick), f"{i * tick:.6g}") for i in range(round(top_tick / tick) + 1)]
    step_ticks = [(100 * f, f"{first + f * (last - first):.0f}") for f in (0.0, 0.5, 1.0)]
    description = (
        f"Training loss over {len(finite)} steps: running mean {trend[0]:.3g} at step {first:.0f}, "
        f"{trend[-1]:.3g} at step {last:.0f}"
    )
    return _Plot(polyline(losses), polyline(trend), loss_ticks, step_ticks, description)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each; fewer at the ends. [N] -> [N]."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _nice_scale(highest: float) -> tuple[float, float]:
    """The highest value -> the top of an axis from zero, and its tick: 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return 1.0, 0.5
    rough = highest / 4
    power = math.pow(10, math.floor(math.log10(rough)))
    tick = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return math.ceil(highest / tick) * tick, tick
