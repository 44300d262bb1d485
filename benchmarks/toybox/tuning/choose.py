"""The cells of both rounds -> README.md beside this file: every rate that was tried, and the one that was taken.

python benchmarks/toybox/tuning/choose.py
"""

import json
from pathlib import Path

from infusion.files import whole_file

FOLDER = Path(__file__).parent
TEXT = """# How the learning rates were chosen

Made by `python benchmarks/toybox/tuning/choose.py` from the cells beside this file.

- Round 1: four rates for every method, on one individual (seed 30000, a cat).
- Round 2: the best two, and the next rate beyond where the best was the lowest or the highest, on another (seed 30001,
  a duck).

16 pictures each (8 prompts, 2 seeds), so every figure is rough; for one individual there is no interval. The score is
the harmonic mean of identity (held to 0..1) and facts; the highest of round 2 was taken (**bold**). Between the rounds
the second moment that Perfusion's gate is measured with came to include the start token, and Custom Diffusion and
DreamBooth became faster.

- Round 3: when class pictures came to be learnt under the one prompt they are drawn with, the two methods that use them
  were tuned again, three rates on both individuals; again the highest score on the second was taken. Their figures of
  rounds 1 and 2 are of no use any more and are left out.

| method | rate | first individual: identity | facts | score | second individual: identity | facts | score |
|---|---|---|---|---|---|---|---|
"""
Scores = dict[str, dict[float, tuple[float, float, float]]]


def scores(round_dir: Path, individual: int) -> Scores:
    """Of one individual, by method and learning rate: identity, facts, and their harmonic mean."""
    found: Scores = {}
    for path in sorted(round_dir.glob(f"cells/*/{individual}.json")):
        cell = json.loads(path.read_text())
        if "settings" not in cell:
            continue
        settings, measures = cell["settings"], cell["measures"]
        name = cell["method"]
        if name == "dreambooth":
            name += " with prior preservation" if settings["prior_preservation_weight"] else " without"
        identity, facts = min(1.0, max(0.0, measures["identity"])), measures["facts"]
        score = 2 * identity * facts / max(identity + facts, 1e-9)
        found.setdefault(name, {})[settings["learning_rate"]] = measures["identity"], facts, score
    return found


def main() -> None:
    first, second = scores(FOLDER / "round_1", 30000), scores(FOLDER / "round_2", 30001)
    first |= scores(FOLDER / "round_3", 30000)
    second |= scores(FOLDER / "round_3", 30001)
    lines = []
    for name in sorted(first):
        taken = max(second[name], key=lambda rate: second[name][rate][2])
        for rate in sorted(first[name].keys() | second[name].keys()):
            cells = [f"{value:.2f}" for value in first[name].get(rate, ())] or ["", "", ""]
            cells += [f"{value:.2f}" for value in second[name].get(rate, ())] or ["", "", ""]
            mark = "**" if rate == taken else ""
            lines.append(f"| {name} | {mark}{rate:g}{mark} | {' | '.join(cells)} |")
    with whole_file(FOLDER / "README.md") as temporary:
        temporary.write_text(TEXT + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
