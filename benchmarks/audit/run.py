"""Files that diffusers' own scripts made -> `infusion audit` of each, and whether it says what it should.

    python benchmarks/peers/run.py --scripts DIR       # makes the files that are too large to be kept here
    python benchmarks/audit/run.py                     # audits those that are there; what is done is kept

Where what should be seen is known: the same LoRA in kohya's names is the same; at a strength of 0 it is the base;
trained four times as long it is overfitted more; DreamBooth without prior preservation swallows the class; a picture
learnt by heart is found out.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infusion.cli.main import app
from infusion.files import whole_file

HERE = Path(__file__).parent
FILES_DIR, RESULTS_DIR = HERE / "files", HERE / "results"
PEERS_DIR = HERE.parent / "peers" / "work"
CUSTOM_DIFFUSION_DIR = HERE / "work" / "custom-diffusion"


@dataclass(frozen=True)
class Case:
    """A customization that is audited, the words that name it, and how strongly it acts."""

    path: Path
    trigger: str = "sks cat"
    scale: float = 1.0


CASES = {
    "lora-150": Case(FILES_DIR / "lora-150.safetensors"),
    "lora-150-kohya": Case(FILES_DIR / "lora-150-kohya.safetensors"),
    "lora-150-off": Case(FILES_DIR / "lora-150.safetensors", "cat", scale=0.0),
    "lora-600": Case(FILES_DIR / "lora-600.safetensors"),
    "lora-copying": Case(FILES_DIR / "lora-copying.safetensors"),
    "textual-inversion": Case(FILES_DIR / "textual-inversion.safetensors", "<my-cat>"),
    "custom-diffusion": Case(CUSTOM_DIFFUSION_DIR, "<new1> cat"),
    "dreambooth": Case(PEERS_DIR / "large" / "dreambooth"),
    "dreambooth-prior": Case(PEERS_DIR / "large" / "dreambooth-prior"),
}


def lay_out_custom_diffusion() -> None:
    """The folder as the script left it: weights and the word under the script's names."""
    kept = {
        PEERS_DIR / "large" / "custom-diffusion.safetensors": "pytorch_custom_diffusion_weights.safetensors",
        FILES_DIR / "custom-diffusion-token.safetensors": "<new1>.safetensors",
    }
    if all(path.exists() for path in kept):
        CUSTOM_DIFFUSION_DIR.mkdir(parents=True, exist_ok=True)
        for path, name in kept.items():
            shutil.copyfile(path, CUSTOM_DIFFUSION_DIR / name)


def audit(name: str, case: Case, work: Path) -> None:
    """One audit, by the command line as a person would call it."""
    words = ["audit", str(case.path), "--base", "toybox", "--class-noun", "cat", "--trigger", case.trigger]
    words += ["--images", str(PEERS_DIR / "pictures"), "--scale", str(case.scale), "--device", "cpu"]
    words += ["-o", str(work / f"{name}.html"), "--json", str(RESULTS_DIR / f"{name}.json")]
    app([*words, "--work-dir", str(work)], standalone_mode=False)


def checks(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What should be seen, and whether it is; of files that were audited."""

    def value(name: str, measure: str) -> float:
        return found[name]["measures"][measure]["value"]

    def axis(name: str, which: str) -> float:
        return found[name]["verdict"][which]["value"]

    made: list[tuple[str, tuple[str, ...], Any]] = [
        (
            "kohya's names and diffusers' names of one LoRA give the same measures, to 1e-4",
            ("lora-150", "lora-150-kohya"),
            lambda a, b: max(abs(value(a, m) - value(b, m)) for m in _shared(found, a, b)) < 1e-4,
        ),
        (
            "at a strength of 0 every measure is the base's own, to 1e-6",
            ("lora-150-off",),
            lambda a: all(
                abs(m["value"] - m["base"]) < 1e-6 for m in found[a]["measures"].values() if m["base"] is not None
            ),
        ),
        *(
            (
                f"the LoRA trained four times as long is worse on {which}",
                ("lora-600", "lora-150"),
                lambda a, b, which=which: axis(a, which) > axis(b, which),
            )
            for which in ("class", "world", "confined", "copied")
        ),
        (
            "the LoRA trained four times as long comes nearer to its training pictures (collapse)",
            ("lora-600", "lora-150"),
            lambda a, b: value(a, "collapse") < value(b, "collapse"),
        ),
        (
            "DreamBooth without prior preservation is told to have leaked into its class",
            ("dreambooth",),
            lambda a: found[a]["verdict"]["class"]["answer"] == "Yes",
        ),
        (
            "DreamBooth with prior preservation leaves the class more diverse",
            ("dreambooth-prior", "dreambooth"),
            lambda a, b: value(a, "class_diversity") > value(b, "class_diversity"),
        ),
        (
            "a picture learnt by heart is found out",
            ("lora-copying",),
            lambda a: found[a]["verdict"]["copied"]["answer"] == "Yes",
        ),
    ]
    return [
        {"check": told, "of": names, "holds": bool(holds(*names))}
        for told, names, holds in made
        if all(name in found for name in names)
    ]


def _shared(found: Mapping[str, Any], first: str, second: str) -> list[str]:
    both = found[first]["measures"].keys() & found[second]["measures"].keys()
    return [m for m in both if all(found[name]["measures"][m]["value"] is not None for name in (first, second))]


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Axes of every audit, with intervals."""
    names = list(next(iter(found.values()))["verdict"])
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, one in found.items():
        told = [_figure(one["verdict"][axis]) for axis in names]
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def _figure(axis: Mapping[str, Any]) -> str:
    if axis["value"] is None:
        return axis["answer"]
    ends = "" if axis["low"] is None else f" ({axis['low']:.3g} to {axis['high']:.3g})"
    return f"{axis['answer']}: {axis['value']:.3g}{ends}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=HERE / "work")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lay_out_custom_diffusion()
    for name, case in CASES.items():
        if not (RESULTS_DIR / f"{name}.json").exists() and case.path.exists():
            print(f"== {name}", flush=True)
            audit(name, case, arguments.work_dir)
    paths = {name: RESULTS_DIR / f"{name}.json" for name in CASES}
    found = {name: json.loads(path.read_text())["audits"][0] for name, path in paths.items() if path.exists()}
    for name, text in (("checks.json", json.dumps(checks(found), indent=1) + "\n"), ("table.md", table(found))):
        with whole_file(RESULTS_DIR / name) as temporary:
            temporary.write_text(text)
    print("\n".join(f"{'holds' if one['holds'] else 'FAILS'}: {one['check']}" for one in checks(found)))


if __name__ == "__main__":
    main()
