"""An audit -> a number for each axis, and what a limit on one says of it."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from infusion.auditing.result import AuditResult
from infusion.errors import UserError, nearest
from infusion.intervals import Figure
from infusion.metrics.catalogue import BY_NAME
from infusion.pages.numbers import format_figure

PARTS = {"w2_background": "background", "w2_layout": "layout", "w2_style": "style"}


class Axis(NamedTuple):
    """An answer's one number: the largest of some measures, of distances in units of what other seeds make of them."""

    name: str
    measures: Sequence[str]
    sentence: str


AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("learnt", ("identity",), "identity: 0 the base model’s images, 1 real images of the subject"),
        Axis(
            "class", ("lfd_s2_relative", "lfd_s3_relative"), "how far predictions for the class and its siblings moved"
        ),
        Axis("world", ("lfd_s1_relative", "lfd_s4_relative"), "how far predictions for everything else moved"),
        Axis("confined", tuple(PARTS), "distance of background, layout or style, in units of other seeds’"),
        Axis("copied", ("copied", "recalled"), "share of images that are a training image over again"),
    )
}
NEED_IMAGES = ("learnt", "copied", "recalled", "identity", "image_alignment", "collapse", "class_leak")


def axis_figure(found: AuditResult, name: str) -> Figure | None:
    """The number of an axis, or a measure by its own name; None where it was not taken."""
    names = AXES[name].measures if name in AXES else (name,)
    figures = [figure for one in names if (figure := found.figure(one))]
    if name == "confined":
        figures = [
            Figure(figure.value / null, figure.low / null, figure.high / null, figure.num)
            for one in names
            if (figure := found.figure(one)) and (null := found.nulls.get(one))
        ]
    return max(figures, key=lambda figure: figure.value, default=None)


class Limit(NamedTuple):
    """What an axis or a measure may not pass: upwards, or downwards."""

    name: str
    value: float
    upwards: bool

    def sentence(self, found: AuditResult) -> str | None:
        """What is wrong, if anything is; what was not measured passes no limit."""
        figure = axis_figure(found, self.name)
        if figure is None:
            return f"{self.name} was not measured, so it cannot keep its limit of {self.value:g}."
        if figure.value > self.value if self.upwards else figure.value < self.value:
            side = "above" if self.upwards else "below"
            return f"{self.name} is {format_figure(figure)}, {side} the limit of {self.value:g}."
        return None


def parse_limit(text: str, upwards: bool, has_images: bool) -> Limit:
    """ "world=0.05" -> a limit.

    Raises:
        UserError: no such axis or measure; no number; it takes images, and there are none.
    """
    name, _, value = text.partition("=")
    known = [*AXES, *BY_NAME]
    if name not in known:
        raise UserError(
            f'There is no axis "{name}".{nearest(name, known)} There are: {", ".join(AXES)}; and every measure by its '
            "name in the JSON file."
        )
    if name in NEED_IMAGES and not has_images:
        raise UserError(f"A limit of {name} takes real images of the subject: give --images FOLDER.")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f'"{text}" is no limit: write {name}=0.05.')
    return Limit(name, number, upwards)
