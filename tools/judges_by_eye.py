"""A hundred generated images, labelled by eye -> how far the judges can be trusted on what a model draws.

    infusion toybox gates -o gates                       draws the images
    python tools/judges_by_eye.py sheet --gates gates    puts 100 of them on one sheet, in mixed order
    (two readers apart write labels_first.json and labels_second.json, seeing the sheet and not the captions)
    python tools/judges_by_eye.py score                  compares, and writes benchmarks/by_eye/README.md

Labels are a list of objects, one for each image, row by row. Their keys, each null where the image does not
show it clearly: `classes`, a list of class nouns, of two toys the left or the upper one first; `color` of the first;
`background`; `style`; `time`; `accessory` of the first, or "none"; `count`; and `relation` of the first to the second:
"left of", "right of" or "on top of".
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from infusion.files import save_png, whole_file
from infusion.foundation.gates import to_tensor
from infusion.intervals import Figure, share
from infusion.toybox.judges import JUDGE_SETS, Facts, Judges, load_judges

FOLDER = Path("benchmarks/by_eye")
NUM_SINGLE, NUM_PAIRS = 65, 35
COLUMNS = 10
READERS = ("first", "second")
ENLARGED = 3


def sheet(args: argparse.Namespace) -> None:
    paths = [
        sorted((args.gates / kind).glob("*.png"))[:n] for kind, n in (("singles", NUM_SINGLE), ("pairs", NUM_PAIRS))
    ]
    chosen = [path for some in paths for path in some]
    if len(chosen) < NUM_SINGLE + NUM_PAIRS:
        raise SystemExit(
            f"error: {args.gates} holds too few images. Run `infusion toybox gates -o {args.gates}` first."
        )
    random.Random(0).shuffle(chosen)
    pictures = [Image.open(path) for path in chosen]
    side = pictures[0].width
    whole = Image.new("RGB", (COLUMNS * side, side * (len(pictures) // COLUMNS)))
    for number, picture in enumerate(pictures):
        whole.paste(picture, cell(number, side))
    save_png(whole, FOLDER / "sheet.png")
    about = [
        {"seed": int(path.stem), "prompt": picture.info["prompt"]}
        for path, picture in zip(chosen, pictures, strict=True)
    ]
    with whole_file(FOLDER / "captions.json") as file:
        file.write_text(json.dumps(about, indent=1) + "\n")
    save_png(numbered(whole, side), args.enlarged)


def cell(number: int, side: int) -> tuple[int, int]:
    row, column = divmod(number, COLUMNS)
    return column * side, row * side


def numbered(whole: Image.Image, side: int) -> Image.Image:
    """The sheet for looking at: enlarged, each image with its number."""
    large = whole.resize((ENLARGED * whole.width, ENLARGED * whole.height), Image.Resampling.BICUBIC)
    draw, font = ImageDraw.Draw(large), ImageFont.load_default(size=20)
    for number in range(COLUMNS * (whole.height // side)):
        x, y = cell(number, ENLARGED * side)
        draw.text((x + 3, y + 1), str(number), "white", font, stroke_width=2, stroke_fill="black")
        draw.rectangle((x, y, x + ENLARGED * side, y + ENLARGED * side), outline="white")
    return large


def agreement(judges: Judges, pictures: list[Image.Image], labels: list[dict[str, Any]]) -> dict[str, Figure]:
    """Share of the labels that the judges share, fact by fact, of images with a label."""
    tensors = [to_tensor(picture)[None] for picture in pictures]
    read = [judges.read(tensor) for tensor in tensors]

    def compare(has: Callable[[dict[str, Any]], bool], agrees: Callable[[int, Facts, dict[str, Any]], bool]) -> Figure:
        return share([agrees(n, read[n], label) for n, label in enumerate(labels) if has(label)])

    def one(label: dict[str, Any]) -> bool:
        return len(label["classes"] or ()) == 1 and label["count"] == 1

    def two(label: dict[str, Any]) -> bool:
        return len(label["classes"] or ()) == 2 and label["count"] == 2

    def relation(number: int, _: Facts, label: dict[str, Any]) -> bool:
        return judges.relation(tensors[number], *label["classes"])[0] == label["relation"]

    return {
        "class of a single toy": compare(one, lambda _, facts, label: facts.class_noun() == label["classes"]),
        "both classes of two": compare(two, lambda _, facts, label: bool(facts.shows(*label["classes"])[0])),
        "colour of a single toy": compare(
            lambda label: one(label) and label["color"] is not None,
            lambda _, facts, label: facts.color_of(label["classes"][0])[0] == label["color"],
        ),
        "background": compare(
            lambda label: label["background"] is not None,
            lambda _, facts, label: facts.background()[0] == label["background"],
        ),
        "style": compare(
            lambda label: label["style"] is not None, lambda _, facts, label: facts.style()[0] == label["style"]
        ),
        "time of day": compare(
            lambda label: label["time"] is not None, lambda _, facts, label: facts.time()[0] == label["time"]
        ),
        "accessory of a single toy": compare(
            lambda label: one(label) and label["accessory"] is not None,
            lambda _, facts, label: (facts.accessory()[0] or "none") == label["accessory"],
        ),
        "number of toys": compare(
            lambda label: label["count"] is not None, lambda _, facts, label: facts.count()[0] == label["count"]
        ),
        "relation of two of different classes": compare(
            lambda label: two(label) and len(set(label["classes"])) == 2 and label["relation"] is not None, relation
        ),
    }


def score(args: argparse.Namespace) -> None:
    labels = {reader: json.loads((FOLDER / f"labels_{reader}.json").read_text()) for reader in READERS}
    whole = Image.open(FOLDER / "sheet.png")
    side = whole.width // COLUMNS
    places = [cell(number, side) for number in range(NUM_SINGLE + NUM_PAIRS)]
    pictures = [whole.crop((x, y, x + side, y + side)) for x, y in places]
    columns = [(name, reader) for reader in READERS for name in JUDGE_SETS]
    found = [agreement(load_judges(name), pictures, labels[reader]) for name, reader in columns]
    lines = [
        "# Judges against the eye, on generated images",
        "",
        f"{len(pictures)} images that the foundation model drew for held-out captions (`sheet.png`, row by row;",
        "`captions.json`) were labelled by eye twice, by two readers apart, from the images alone",
        "(`labels_first.json`, `labels_second.json`; null: not clearly to be seen). Below, the share of labels the",
        "judges agree with, its 95%",
        "interval, and the number of such labels. `python tools/judges_by_eye.py score` writes this page.",
        "",
        "| fact | " + " | ".join(f"judges {name}, {reader} reader" for name, reader in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for fact in found[0]:
        lines.append(f"| {fact} | " + " | ".join(told(figures[fact]) for figures in found) + " |")
    unclear = [str(sum(label["classes"] is None for label in labels[reader])) for reader in READERS]
    lines += [
        "",
        f"The first and the second reader could not say which toys are shown by {' and '.join(unclear)} of the",
        f"{len(pictures)} images; the judges always say something. A share of toys that judges find in generated",
        "images is therefore kinder than the eye.",
    ]
    with whole_file(FOLDER / "README.md") as file:
        file.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def told(figure: Figure) -> str:
    return f"{100 * figure.value:.0f}% ({100 * figure.low:.0f} to {100 * figure.high:.0f}, n = {figure.num})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(required=True)
    one = stages.add_parser("sheet")
    one.add_argument("--gates", type=Path, default=Path("gates"))
    one.add_argument("--enlarged", type=Path, default=Path("numbered.png"), help="where the sheet to look at goes")
    one.set_defaults(run=sheet)
    stages.add_parser("score").set_defaults(run=score)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
