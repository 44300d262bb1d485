"""A benchmark's strips of images -> the sheets and cases that its page shows."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from infusion.benchmark.cells import Cell, Tile
from infusion.benchmark.results import Results
from infusion.errors import UserError
from infusion.metrics.catalogue import BASE, NULL
from infusion.pages.numbers import format_number

_NUM_INDIVIDUALS_SHOWN = 3
_MOST_COLUMNS = 8
_NUM_CASES = 6


class Sheet(NamedTuple):
    """One individual: what every row drew from the same prompts and seeds, one strip of images a row."""

    heading: str
    training: Image.Image | None
    columns: Sequence[tuple[str, str]]  # prompt, seed
    rows: Sequence[tuple[str, Image.Image]]


class Cases(NamedTuple):
    """A row's best and worst images, each above a training image of its individual."""

    row: str
    worst: Image.Image | None
    best: Image.Image | None
    worst_captions: Sequence[str]
    best_captions: Sequence[str]


def shown_individuals(results: Results) -> list[int]:
    """A few of the reference's individuals, of different classes first."""
    cells = list(results.cells[results.reference].values())
    nouns: dict[str, int] = {}
    for cell in cells:
        nouns.setdefault(cell.class_noun, cell.individual)
    others = [cell.individual for cell in cells if cell.individual not in nouns.values()]
    return [*nouns.values(), *others][:_NUM_INDIVIDUALS_SHOWN]


def sheet_of(results: Results, individual: int) -> Sheet | None:
    cells = {row: cells[individual] for row, cells in results.cells.items() if individual in cells}
    cells = {row: cell for row, cell in cells.items() if cell.path.with_suffix(".webp").exists()}
    drawn = {row: _grid(cell) for row, cell in cells.items()}
    wanted = drawn.get(results.reference) or next((some for some in drawn.values() if some), {})
    columns = list(wanted)[:_MOST_COLUMNS]
    if not columns:
        return None
    side = next(iter(wanted.values())).height
    rows: list[tuple[str, Sequence[Image.Image | None]]] = []
    training = next((images for cell in cells.values() if (images := _images(cell, "training"))), [])
    if BASE not in cells and (base := [_by_prompt(cell, "base") for cell in cells.values()]):
        rows.append((BASE, [base[0].get(column) for column in columns]))
    order = sorted(cells, key=lambda row: (row != BASE, row == NULL))
    rows += [(row, [drawn[row].get(column) for column in columns]) for row in order if drawn[row] and row != NULL]
    noun = results.individuals[individual]
    return Sheet(
        heading=f"Individual {individual}, a {noun}",
        training=_strip(training[: len(columns)], side, len(columns)) if training else None,
        columns=[(prompt, f"seed {seed}") for prompt, seed in columns],
        rows=[(row, _strip(tiles, side, len(columns))) for row, tiles in rows if any(tiles)],
    )


_Place = tuple[str, int | None]


def _grid(cell: Cell) -> dict[_Place, Image.Image]:
    return _by_prompt(cell, "grid")


def _by_prompt(cell: Cell, kind: str) -> dict[_Place, Image.Image]:
    """A cell's tiles of a kind, by prompt and seed; a prompt is the same with the placeholder and with the noun."""
    chosen = [tile for tile in cell.tiles if tile.kind == kind]
    return {(_in_words(tile, cell), tile.seed): image for tile, image in zip(chosen, _images(cell, kind), strict=True)}


def _in_words(tile: Tile, cell: Cell) -> str:
    """A tile's prompt with the class noun in the place of the concept."""
    noun = cell.class_noun
    return re.sub(rf"<[^<>\s]+>(\s+{re.escape(noun)}\b)?", lambda _: noun, tile.prompt)


def _images(cell: Cell, kind: str) -> list[Image.Image]:
    """A cell's tiles of one kind, cut out of its strip."""
    places = [place for place, tile in enumerate(cell.tiles) if tile.kind == kind]
    if not places:
        return []
    path = cell.path.with_suffix(".webp")
    try:
        with Image.open(path) as opened:
            strip = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} is missing or damaged: delete {cell.path} and run the benchmark again.") from error
    side = strip.height
    if strip.width != side * len(cell.tiles):
        raise UserError(
            f"{path} is damaged: it is {strip.width} x {side} pixels, and {len(cell.tiles)} square images are to be "
            f"in it. Delete {cell.path} and run the benchmark again."
        )
    return [strip.crop((place * side, 0, (place + 1) * side, side)) for place in places]


def _strip(images: Sequence[Image.Image | None], side: int, num: int) -> Image.Image:
    """Images side by side, `num` places wide, a thin transparent line after each; a place without one stays clear."""
    gap = max(1, side // 32)
    strip = Image.new("RGBA", (num * (side + gap), side))
    for i, image in enumerate(images):
        if image is not None:
            strip.paste(image.resize((side, side)), (i * (side + gap), 0))
    return strip


def cases_of(results: Results, row: str) -> Cases | None:
    """Of all individuals of a row, the images with the highest scores and with the lowest, as many of each."""
    cells = [cell for cell in results.cells[row].values() if cell.path.with_suffix(".webp").exists()]
    worst, best = (_extreme(cells, kind) for kind in ("worst", "best"))
    if not (worst or best):
        return None
    return Cases(row, _above_training(worst), _above_training(best), _captions(worst), _captions(best))


_Case = tuple[Cell, Tile, Image.Image]


def _extreme(cells: Sequence[Cell], kind: str) -> list[_Case]:
    cases = []
    for cell in cells:
        chosen = [tile for tile in cell.tiles if tile.kind == kind]
        cases += [(cell, tile, image) for tile, image in zip(chosen, _images(cell, kind), strict=True)]
    sign = -1 if kind == "best" else 1
    return sorted(cases, key=lambda case: sign * (case[1].score or 0.0))[:_NUM_CASES]


def _captions(cases: Sequence[_Case]) -> list[str]:
    return [
        f"individual {cell.individual}, score {format_number(tile.score, 2)}: {tile.prompt}, seed {tile.seed}"
        for cell, tile, _ in cases
    ]


def _above_training(cases: Sequence[_Case]) -> Image.Image | None:
    if not cases:
        return None
    side = cases[0][2].height
    training = [next(iter(_images(cell, "training")), None) for cell, _, _ in cases]
    upper = _strip([image for _, _, image in cases], side, _NUM_CASES)
    if not any(training):
        return upper
    lower = _strip(training, side, _NUM_CASES)
    sheet = Image.new("RGBA", (upper.width, 2 * side + side // 16))
    sheet.paste(upper, (0, 0))
    sheet.paste(lower, (0, side + side // 16))
    return sheet
