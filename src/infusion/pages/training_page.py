"""What a training made -> one page.

The page is a single HTML file: images, styles and the loss curve lie inside it, it has no script, and it
asks nothing of the network. What is on it is measured by the caller; this module only lays it out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from infusion.pages.html import render, write
from infusion.pages.numbers import format_count, format_seconds

_PAIRS_IN_A_ROW = 4


@dataclass(frozen=True)
class TrainingImage:
    """One image of the concept.

    mask: "L", any size, white = learnt; None: all of it. source: where the mask is from: "given", "alpha",
    "attention", or in other words. coverage: the mask's mean, 0 to 1.
    """

    image: Image.Image
    mask: Image.Image | None
    source: str
    coverage: float


@dataclass(frozen=True)
class Comparison:
    """One prompt, drawn by the base model and by the customized one; images i come from seeds[i]."""

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
    training_images: Sequence[TrainingImage]
    comparisons: Sequence[Comparison]
    untouched: Sequence[Untouched]
    facts: Mapping[str, str]
    settings: Mapping[str, str]
    notes: Sequence[str] = ()
    loss_curve: Sequence[tuple[int, float]] = ()
    previews: Sequence[Preview] = ()


def write_page(page: Page, path: str | Path) -> None:
    """Page -> one HTML file at `path`, whole or not at all. UserError when it cannot be written."""
    write(render_page(page), path)


def render_page(page: Page) -> str:
    """Page -> HTML. All text is escaped: a prompt is shown as it was typed, whatever is in it."""
    return render(
        "page.html.j2",
        page=page,
        loss=_loss_plot(page.loss_curve),
        pairs_in_a_row=_PAIRS_IN_A_ROW,
        cut_out=_cut_out,
        exact=_exact,
    )


def describe_run(
    class_noun: str,
    num_images: int,
    max_train_steps: int,
    training_seconds: float,
    num_parameters: int,
    file_bytes: int,
    untouched: Sequence[Untouched] = (),
) -> str:
    """One sentence for the head of the page. It says that others are untouched only if that was measured."""
    images, steps = format_count(num_images, "image"), format_count(max_train_steps, "training step")
    sentence = (
        f"Learnt from {images} of one {class_noun} in {steps} and {format_seconds(training_seconds)}: "
        f"{num_parameters:,} numbers in a file of {file_bytes:,} bytes"
    )
    if untouched and all(row.largest_difference == 0 for row in untouched):
        prompts = "1 prompt that does" if len(untouched) == 1 else f"{len(untouched)} prompts that do"
        sentence += f"; {prompts} not name it gave the base model's images, bit for bit"
    return sentence + "."


def _cut_out(shown: TrainingImage) -> Image.Image:
    """What is learnt of a training image: the image, as opaque as its mask is white."""
    cut = shown.image.convert("RGB")
    if shown.mask is not None:
        cut.putalpha(shown.mask.convert("L").resize(cut.size, Image.Resampling.BILINEAR))
    return cut


def _exact(difference: float) -> str:
    return "0 (bit-identical)" if difference == 0 else str(difference)


# --------------------------------------------------- the loss curve, in a box of 100 x 100; the page stretches it


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
