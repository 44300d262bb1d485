"""recipe.toml + diffusers' training scripts -> the files that the scripts make on the embedded base.

    python benchmarks/peers/run.py --scripts DIR                       # all of them
    python benchmarks/peers/run.py --scripts DIR --only lora kohya     # some

Where the scripts come from says README.md. A run whose files are all there is not run again.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infusion.files import save_png, whole_file
from infusion.toybox import FOUNDATION_DIR
from infusion.toybox.concepts import concept_images

HERE = Path(__file__).parent
FILES_DIR = HERE.parent / "audit" / "files"
MOST_BYTES = 300_000  # larger files are not kept in the repository: they go to the work folder
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "ACCELERATE_USE_CPU": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DIFFUSERS_VERBOSITY": "error",
}
_VERSIONS_OF = ("torch", "diffusers", "transformers", "peft", "accelerate", "pillow")


def write_pictures(recipe: Mapping[str, Any], work: Path) -> dict[str, str]:
    """The folders of the base and of training pictures, as arguments name them."""
    images, _ = concept_images(recipe["individual"], recipe["num_images"])
    places = {name: work / name for name in ("pictures", "one_picture")}
    for name, kept in (("pictures", images), ("one_picture", images[:1])):
        shutil.rmtree(places[name], ignore_errors=True)
        for number, image in enumerate(kept, start=1):
            save_png(image, places[name] / f"{number:02d}.png")
    return {"base": str(FOUNDATION_DIR), **{name: str(place) for name, place in places.items()}}


def command_line(arguments: Mapping[str, Any], places: Mapping[str, str], output_dir: Path) -> list[str]:
    """Arguments of a recipe -> words; `true` is a flag."""
    words = ["--output_dir", str(output_dir)]
    for name, value in arguments.items():
        words.append(f"--{name}")
        if value is not True:
            words.append(value.format_map(places) if isinstance(value, str) else str(value))
    return words


def run_script(script: Path, words: Sequence[str], log: Path) -> float:
    """Run a training script by itself; returns its seconds.

    Raises:
        SystemExit: it failed; the log says why.
    """
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(
            [sys.executable, str(HERE / "launch.py"), str(script), *words],
            env=os.environ | ENVIRONMENT,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if ended.returncode:
        raise SystemExit(f"{script.name} ended with {ended.returncode}; its last lines, of {log}:\n{_tail(log)}")
    return time.monotonic() - started


def _tail(log: Path, num_lines: int = 12) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])


def write_kohya(source: Path, target: Path) -> None:
    """A LoRA in diffusers' keys, again in those of kohya's trainer."""
    from diffusers.utils import convert_state_dict_to_kohya, convert_unet_state_dict_to_peft
    from safetensors.torch import load_file, save_file

    tensors = convert_state_dict_to_kohya(convert_unet_state_dict_to_peft(load_file(source)))
    with whole_file(target) as file:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def keep(source: Path, name: str, files_dir: Path, work: Path) -> Path:
    """Copy what a script made: small files to `files_dir`, the others into the work folder."""
    small = source.is_file() and source.stat().st_size < MOST_BYTES
    target = (files_dir if small else work / "large") / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoint-*", "logs"))
    else:
        with whole_file(target) as file:
            shutil.copyfile(source, file)
    return target


def facts(path: Path) -> dict[str, Any]:
    """Bytes and digest of a file; of a folder, bytes alone."""
    if path.is_dir():
        return {"bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file())}
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", type=Path, required=True, metavar="DIR", help="where diffusers' scripts are")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="names of runs in the recipe")
    parser.add_argument("--again", action="store_true", help="also runs whose files are there")
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.toml")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="logs, checkpoints and large files")
    parser.add_argument("--output", "-o", type=Path, default=FILES_DIR, help="files below 300 kB")
    given = parser.parse_args()
    recipe = tomllib.loads(given.recipe.read_text(encoding="utf-8"))
    runs = recipe["runs"]
    if unknown := set(given.only or ()) - runs.keys():
        parser.error(f"the recipe has no run {', '.join(sorted(unknown))}; it has {', '.join(runs)}")
    missing = {run["script"] for run in runs.values()} - {file.name for file in given.scripts.glob("*.py")}
    if missing:
        parser.error(f"{given.scripts} lacks {', '.join(sorted(missing))}; README.md says how to get them")
    given.work.mkdir(parents=True, exist_ok=True)
    given.output.mkdir(parents=True, exist_ok=True)
    places = write_pictures(recipe, given.work)
    record_path = given.output / "made.json"
    made = json.loads(record_path.read_text(encoding="utf-8")) if record_path.exists() else {}
    for name, run in runs.items():
        names = [*run["keep"], *run.get("kohya", {})]
        there = all((given.output / file).exists() or (given.work / "large" / file).exists() for file in names)
        if (given.only and name not in given.only) or (there and name in made and not given.again):
            continue
        print(f"{name}: {run['script']} ...", flush=True)
        output_dir, class_pictures = given.work / name, given.work / f"{name}-class-pictures"
        for folder in (output_dir, class_pictures):  # what a script draws at random depends on what it finds
            shutil.rmtree(folder, ignore_errors=True)
        folders = places | {"class_pictures": str(class_pictures)}
        words = command_line(recipe["arguments"] | run["arguments"], folders, output_dir)
        seconds = run_script(given.scripts / run["script"], words, given.work / f"{name}.log")
        files = {
            file: keep(output_dir / source, file, given.output, given.work) for file, source in run["keep"].items()
        }
        for file, source in run.get("kohya", {}).items():
            files[file] = given.output / file
            write_kohya(files[source], files[file])
        made[name] = {
            "script": run["script"],
            "script_sha256": facts(given.scripts / run["script"])["sha256"],
            "versions": {package: version(package) for package in _VERSIONS_OF},
            "files": {file: facts(path) for file, path in files.items()},
        }
        with whole_file(record_path) as file:
            file.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {seconds:.0f} s, {', '.join(map(str, files.values()))}", flush=True)


if __name__ == "__main__":
    main()
