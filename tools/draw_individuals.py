"""Six individuals of different classes, each taught with the default settings -> the images in docs/images.

    python tools/draw_individuals.py

The individuals are the first concept seeds that have six different classes: nothing is chosen by its looks. Writes
individuals.png (all of them) and hero.png (the second one, which `make demo` teaches), and prints what it took. The
hero.png of the repository is drawn with `--count 2 --set learning_rate=0.03`, as `make demo` teaches it.
"""

import argparse
import tempfile
import time
from pathlib import Path

from infusion import Infusion, generate, load_base, load_concept, train
from infusion.pages.images import contact_sheet
from infusion.toybox.concepts import write_concept
from infusion.toybox.scene import individual

PLACES = (
    "on the beach",
    "in the snow",
    "in front of a brick wall",
    "in the forest",
    "on a wooden floor",
    "in the desert",
)
SEED = 0
SCALE = 2


def first_seeds(count: int) -> list[int]:
    """The lowest concept seeds whose individuals are all of different classes."""
    chosen: dict[str, int] = {}
    seed = 0
    while len(chosen) < count:
        chosen.setdefault(individual(seed).class_noun, seed)
        seed += 1
    return list(chosen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="settings of the method")
    args = parser.parse_args()
    from infusion.settings import from_mapping

    method = from_mapping(Infusion, dict(item.split("=") for item in args.set))
    base = load_base("toybox")
    rows, labels = [], []
    for seed in first_seeds(args.count):
        with tempfile.TemporaryDirectory() as folder:
            noun = write_concept(seed, folder)
            concept = load_concept(folder, noun, name="it")
        adapter = method.adapter(base, concept)
        started = time.monotonic()
        losses = [progress.loss for progress in train(base, adapter, concept)]
        seconds = time.monotonic() - started
        tenth = max(1, len(losses) // 10)
        loss = sum(losses[-tenth:]) / tenth
        print(
            f"seed {seed}, {noun}: {len(losses)} steps in {seconds:.0f} s, mean loss of the last tenth {loss:.4f}",
            flush=True,
        )
        before = generate(base, [f"a {noun} {place}" for place in PLACES], seeds=[SEED])
        after = generate(base, [f"a <it> {place}" for place in PLACES], [adapter], seeds=[SEED])
        rows += [[concept.images[0], *before], [concept.images[1], *after]]
        labels += [f"{noun} · base", "taught"]
    args.out.mkdir(parents=True, exist_ok=True)
    columns = ["training", *(place.removeprefix("in front of ") for place in PLACES)]
    contact_sheet(rows, labels, columns, SCALE).save(args.out / "individuals.png")
    contact_sheet(rows[2:4], ["base", "taught"], columns, SCALE).save(args.out / "hero.png")


if __name__ == "__main__":
    main()
