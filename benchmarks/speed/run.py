"""The name of a comparison -> a JSON file and a table of what each of its rows takes.

    python benchmarks/speed/run.py training --model quarter --dtype fp32 --scripts DIR
    python benchmarks/speed/run.py start --model quarter --scripts DIR
    python benchmarks/speed/run.py sampling --model quarter --batch-size 8
    python benchmarks/speed/run.py growth --model toybox --batch-size 8
    python benchmarks/speed/run.py concepts --model quarter
    python benchmarks/speed/run.py command-line
    python benchmarks/speed/run.py training --model sd15 --dtype bf16 --batch-size 16 --device cuda

README.md says how it is measured, and ../peers/README.md where diffusers' training scripts (--scripts) come from.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import ENVIRONMENT, HERE, Measured, Ratio, Row, Worker, result, start_up, table, take_turns
from models import NAMES, model_dir, size_px
from turns import Clock

from infusion.files import save_png, whole_file
from infusion.toybox.concepts import concept_images

INDIVIDUAL = 41012
NUM_CONCEPTS = 1000
WARM_UP_STEPS = 4
LOCK_UNTIL = 0.4  # what is lost by it: ../toybox/full/lock_until.md
SCRIPTS = ("textual-inversion", "lora", "custom-diffusion")
_FORWARD, _OURS = Row("UNet forward", "forward"), Row("infusion", "infusion")
_AGAIN = ", again"
_PEER = "diffusers "
Told = Mapping[str, Any]
Found = dict[str, Any]
_VERSIONS_OF = ("torch", "diffusers", "transformers", "accelerate", "peft", "infusion-diffusion")
# TFLOP of a training step of one picture that cannot be avoided, with cached latents (1 MAC = 2 FLOP): what a step of
# ours is held against. The foundation's pass, the customized one from the first layer that reads text on, and its
# backward pass for the residuals; counted on the real configurations.
LEAST_TFLOP = {"sd15": 2.351, "sdxl": 18.88}


def _again(row: Row) -> Row:
    return Row(row.name + _AGAIN, row.worker, row.told)


def training_rows(given: argparse.Namespace) -> list[Row]:
    there = given.scripts is not None and given.model != "sdxl"  # which has scripts of its own
    peers = [Row(_PEER + name, "diffusers_script", {"script": name}) for name in given.peers] if there else []
    return [_FORWARD, _OURS, *peers, _again(_OURS)]


def _references(rows: Sequence[Row]) -> list[str]:
    """What others are held against: our step, the network's pass, and the script that, like ours, learns one word."""
    names = {row.name for row in rows}
    return [name for name in (_OURS.name, _FORWARD.name, _PEER + SCRIPTS[0]) if name in names]


def sampling_rows() -> list[Row]:
    plain, named = {"concepts": 0}, {"concepts": 1}
    reference = Row("diffusers pipeline", "pipeline", plain)
    return [
        reference,
        Row("infusion.generate, no concept", "generation", plain),
        Row("infusion.generate, a concept", "generation", named),
        Row(f"infusion.generate, a concept, lock_until {LOCK_UNTIL}", "generation", named | {"lock_until": LOCK_UNTIL}),
        Row("customized pipeline, a concept", "pipeline", named),
        _again(reference),
    ]


def growth_rows(batch_size: int) -> list[Row]:
    """A batch of pictures, with ever more concepts in a prompt, and with ever more prompts in the batch."""
    reference = Row("no concept", "generation", {"concepts": 0})
    counts = [1, 2, 4, 8]
    in_one = [Row(f"{number} in a prompt", "generation", {"concepts": number}) for number in counts]
    prompts = [
        Row(f"{number} prompts, each its own concept", "generation", {"concepts": number, "prompts": number})
        for number in counts[1:]
        if batch_size % number == 0
    ]
    return [reference, *in_one, *prompts, _again(reference)]


def write_picture(work: Path, side_px: int, batch_size: int = 1) -> dict[str, str]:
    """A training picture with its mask; and again alone, as often as makes some whole batches: diffusers' scripts make
    no batch larger than their pictures are many, and encode them in every step anyway."""
    (image,), (mask,) = concept_images(INDIVIDUAL, 1, size_px=side_px)
    alone, with_mask = work / "pictures" / f"{side_px}-{batch_size}", work / "picture-and-mask" / f"{side_px}"
    for number in range(4 * batch_size):
        save_png(image, alone / f"{number:02d}.png")
    save_png(image, with_mask / "1.png")
    save_png(mask, with_mask / "masks" / "1.png")
    return {"pictures": str(alone), "picture_and_mask": str(with_mask)}


def yardstick(device: str, dtype: str) -> float:
    """FLOP/s of a large matrix product, in bf16 on CUDA: the best of some."""
    clock = Clock(device)
    side = 8192 if clock.on_cuda else 1024
    kind = torch.bfloat16 if clock.on_cuda or dtype == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(8):
        started = clock.now()
        a @ b
        seconds.append(clock.between(started, clock.now()))
    return 2 * side**3 / min(seconds)


def facts(given: argparse.Namespace) -> dict[str, Any]:
    """What of the machine and of the run decides about the figures."""
    on_cuda = given.device.startswith("cuda")
    of_model = {
        "model": given.model,
        "size px": size_px(given.model),
        "batch size": given.batch_size,
        "dtype": given.dtype,
    }
    of_sampling = {"sampler steps": given.sampler_steps, "guidance scale": given.guidance_scale}
    return {
        **(of_model if given.comparison != "command-line" else {}),
        **({"steps of a turn": given.steps} if given.comparison in ("training", "sampling", "growth") else {}),
        **(of_sampling if given.comparison in ("sampling", "growth") else {}),
        "device": torch.cuda.get_device_name(given.device) if on_cuda else f"CPU ({platform.machine()})",
        "vector units": torch.backends.cpu.get_cpu_capability(),
        "threads": ENVIRONMENT["OMP_NUM_THREADS"],
        "python": platform.python_version(),
        **{package: version(package) for package in _VERSIONS_OF},
    }


def training(given: argparse.Namespace, told: Told) -> Found:
    """One training step, beside the network's forward pass and the steps of diffusers' own scripts."""
    rows = training_rows(given)
    told = {**told, "warm_up_steps": WARM_UP_STEPS}
    measured = take_turns(rows, told, given.logs, given.steps, given.repeats)
    found = result("one step", measured, _references(rows), _OURS.name + _AGAIN, given.unit)
    speed = yardstick(given.device, given.dtype)
    return found | {"matmul_flops_per_second": speed, "utilisation": utilisation(found, speed, given)}


def utilisation(found: Found, flops_per_second: float, given: argparse.Namespace) -> dict[str, float]:
    """Share of the matrix product's speed that the least arithmetic of a row makes; rows whose count is known."""
    counts = {_FORWARD.name: found["rows"][_FORWARD.name]["flops"]}
    if given.model in LEAST_TFLOP:
        counts[_OURS.name] = LEAST_TFLOP[given.model] * 1e12 * given.batch_size
    return {
        name: count / found["rows"][name][given.unit]["median"] / flops_per_second for name, count in counts.items()
    }


def start(given: argparse.Namespace, told: Told) -> Found:
    """From the start of a process to its first step."""
    rows = training_rows(given)
    measured = start_up(rows, told, given.logs, given.repeats)
    return result("start to first step", measured, _references(rows), _OURS.name + _AGAIN, "cpu")


def sampling(given: argparse.Namespace, told: Told) -> Found:
    """A batch of pictures, beside the plain diffusers pipeline."""
    rows = sampling_rows()
    measured = take_turns(rows, told, given.logs, given.steps, given.repeats)
    return result(f"{given.batch_size} pictures", measured, [rows[0].name], rows[0].name + _AGAIN, given.unit)


def growth(given: argparse.Namespace, told: Told) -> Found:
    """A batch of pictures with ever more concepts and prompts in it."""
    rows = growth_rows(given.batch_size)
    measured = take_turns(rows, told, given.logs, given.steps, given.repeats)
    return result(f"{given.batch_size} pictures", measured, [rows[0].name], rows[0].name + _AGAIN, given.unit)


def concepts(given: argparse.Namespace, told: Told) -> Found:
    """What adapters that are loaded side by side take."""
    with Worker(Row("concepts", "concepts"), told, given.logs / "concepts.log") as worker:
        taken = worker.turn(NUM_CONCEPTS)
    grown = taken["resident_bytes"] - worker.first["resident_bytes"]
    return {
        "num_concepts": NUM_CONCEPTS,
        "num_parameters": worker.first["num_parameters"],
        "file_bytes": worker.first["file_bytes"],
        "bytes": grown,
        "bytes_per_number": grown / NUM_CONCEPTS / worker.first["num_parameters"],
        "cpu_seconds_per_concept": taken["cpu"],
        "wall_seconds_per_concept": taken["wall"],
    }


def command_line(given: argparse.Namespace, told: Told) -> Found:
    """How long the command line takes to say what it can do, beside a Python that does nothing."""
    commands = {
        "python": ["-c", "pass"],
        "import infusion": ["-c", "import infusion"],
        "infusion --help": ["-m", "infusion.cli", "--help"],
        "infusion generate --help": ["-m", "infusion.cli", "generate", "--help"],
        "infusion train --help": ["-m", "infusion.cli", "train", "--help"],
    }
    reference = "infusion --help"
    commands[reference + _AGAIN] = commands[reference]
    rounds = [{name: _ran(words) for name, words in commands.items()} for _ in range(given.repeats + 1)][1:]
    measured = [Measured(Row(name, "command"), {}, [taken[name] for taken in rounds]) for name in commands]
    return result("command", measured, [reference], reference + _AGAIN, "cpu")


def _ran(words: Sequence[str]) -> dict[str, float]:
    """A Python process of its own, to its end."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, env=os.environ | ENVIRONMENT)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return {"cpu": used.ru_utime + used.ru_stime, "wall": wall}


COMPARISONS = {"training": training, "start": start, "sampling": sampling, "growth": growth, "concepts": concepts}
COMPARISONS |= {"command-line": command_line}


def written(found: Found) -> str:
    """A result as Markdown."""
    parts = [concepts_sentence(found) if "num_concepts" in found else table(found)]
    if "utilisation" in found and not found["noisy"]:
        shares = ", ".join(f"{row} {share:.1%}" for row, share in found["utilisation"].items())
        parts.append(f"Of a matrix product's {found['matmul_flops_per_second'] / 1e12:.3g} TFLOP/s: {shares}.")
        parts += cached_sentence(found)
    parts.append(", ".join(f"{name} {value}" for name, value in found["facts"].items()) + ".")
    return "\n\n".join(parts) + "\n"


def cached_sentence(found: Found) -> list[str]:
    """Our step beside the least that scripts with cached latents could need: what they take within the network."""
    ours = found["rows"][_OURS.name][found["unit"]]["rounds"]
    told = []
    for name in (name for name in found["rows"] if name.startswith(_PEER)):
        theirs = found["rows"][name]["network"]["rounds"]
        median, low, high = Ratio.of([whole / network for whole, network in zip(ours, theirs, strict=True)])
        told.append(f"{name.removeprefix(_PEER)} {median:.3f} ({low:.3f} to {high:.3f})")
    if not told:
        return []
    return [
        f"A step of {_OURS.name}, in units of what a script's takes within the network, which is the least it would "
        f"need with cached latents: {', '.join(told)}."
    ]


def concepts_sentence(found: Found) -> str:
    cpu, wall = (1000 * found[f"{clock}_seconds_per_concept"] for clock in ("cpu", "wall"))
    return (
        f"{found['num_concepts']:,} concepts of {found['num_parameters']:,} numbers, in files of "
        f"{found['file_bytes']:,} bytes, take {found['bytes'] / 1e6:.0f} MB of memory when they are loaded: "
        f"{found['bytes_per_number']:.2f} bytes a number. Loading one takes {cpu:.2f} ms of CPU, {wall:.2f} ms in all."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=COMPARISONS)
    parser.add_argument("--model", choices=NAMES, default="quarter")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--scripts", type=Path, metavar="DIR", help="where diffusers' training scripts are")
    parser.add_argument("--peers", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="which of the scripts")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--sampler-steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="random models, logs")
    parser.add_argument("--output-dir", "-o", type=Path, default=HERE / "results")
    given = parser.parse_args()
    os.environ |= ENVIRONMENT
    torch.set_num_threads(1)
    work = given.work.resolve()
    given.logs = work / "logs"
    given.logs.mkdir(parents=True, exist_ok=True)
    given.unit = "device" if given.device.startswith("cuda") else "cpu"
    told = {
        "model_dir": str(model_dir(given.model, work)),
        "size_px": size_px(given.model),
        "dtype": given.dtype,
        "device": given.device,
        "batch_size": given.batch_size,
        "scripts": str(given.scripts),
        "sampler_steps": given.sampler_steps,
        "guidance_scale": given.guidance_scale,
        "work": str(work),
        **write_picture(work, size_px(given.model), given.batch_size),
    }
    found = COMPARISONS[given.comparison](given, told)
    found |= {"comparison": given.comparison, "repeats": given.repeats, "facts": facts(given)}
    text = written(found)
    name = given.comparison
    if given.comparison != "command-line":
        name += f"-{given.model}-{given.dtype}-b{given.batch_size}-{given.device.split(':')[0]}"
    for ending, content in (("json", json.dumps(found, indent=1) + "\n"), ("md", text)):
        with whole_file(given.output_dir / f"{name}.{ending}") as file:
            file.write_text(content, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
