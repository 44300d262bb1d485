"""A template + what is to be shown -> one HTML file: no script, nothing from the network."""

import base64
import io
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from infusion.files import whole_file
from infusion.metrics.catalogue import arrow
from infusion.pages.images import is_pixelated
from infusion.pages.numbers import format_percent

_LOSSLESS_SIDE_PX = 256  # up to here an image is stored exactly (PNG); above, as WebP


def render(template: str, **shown: Any) -> str:
    """The name of a template in `templates/` + its variables -> HTML. All text is escaped."""
    return _environment().get_template(template).render(**shown)


def write(page: str, path: str | Path) -> None:
    """HTML -> a file at `path`, whole or not at all. UserError when it cannot be written."""
    with whole_file(Path(path)) as temporary:
        temporary.write_bytes(page.encode("utf-8", errors="replace"))


def style(name: str) -> Markup:
    """A style sheet in `templates/`, to stand inside a page."""
    return Markup(_text(name))


def data_uri(image: Image.Image) -> str:
    """An image -> its bytes in a `data:` address."""
    stored = io.BytesIO()
    image = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
    if max(image.size) <= _LOSSLESS_SIDE_PX:
        image.save(stored, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(stored, "WEBP", quality=90)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(stored.getvalue()).decode('ascii')}"


def pieces(prompt: str) -> list[tuple[str, bool]]:
    """A prompt -> its pieces, each with whether it is a concept's placeholder."""
    split = re.split(r"(<[^<>\s]+>)", prompt)  # with one group, every second piece is a match
    return [(piece, i % 2 == 1) for i, piece in enumerate(split) if piece]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "arrow": arrow,
        "data_uri": data_uri,
        "is_pixelated": is_pixelated,
        "percent": format_percent,
        "pieces": pieces,
    }
    return environment


@cache
def _text(name: str) -> str:
    return files("infusion.pages").joinpath("templates", name).read_text(encoding="utf-8")
