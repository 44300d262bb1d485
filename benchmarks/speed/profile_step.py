"""A training step of ours -> a table of where its time goes, by operation.

    OMP_NUM_THREADS=1 python benchmarks/speed/profile_step.py --model quarter --steps 3

By torch's profiler, of the processor's own time or, with `--device cuda`, of the device's: which kinds of arithmetic a
step consists of, and what stands beside them. For how long a step takes ask `run.py training`, which does not look.
"""

import argparse
import itertools
from pathlib import Path

import torch
from measure import HERE
from models import NAMES, model_dir, size_px
from run import write_picture
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from infusion import Infusion, TrainingSettings, load_base, load_concept, train
from infusion.files import whole_file

_NUM_ROWS = 16


def profiled(model: str, work: Path, device: str, batch_size: int, steps: int) -> profile:
    """Some steps, after one that is left out."""
    base = load_base(model_dir(model, work), device)
    concept = load_concept(write_picture(work, size_px(model))["picture_and_mask"], "cat", "my-cat")
    adapter = Infusion(max_train_steps=steps + 1).adapter(base, concept)
    training = train(base, adapter, concept, TrainingSettings(train_batch_size=batch_size))
    next(training)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]
    with profile(activities=activities) as found:
        for _ in itertools.islice(training, steps):
            pass
    return found


def table(found: profile, steps: int, on_cuda: bool) -> str:
    """Operations by their own time, the longest first, as Markdown."""

    def own(entry: object) -> float:
        return getattr(entry, "self_device_time_total" if on_cuda else "self_cpu_time_total")

    entries = [entry for entry in found.key_averages() if (entry.device_type == DeviceType.CUDA) == on_cuda]
    entries = sorted(entries, key=own, reverse=True)
    whole = sum(map(own, entries))
    lines = [f"| operation | ms a step | share of {whole / 1000 / steps:.1f} | calls a step |", "|---|---|---|---|"]
    shown = [(entry.key, own(entry), entry.count) for entry in entries[:_NUM_ROWS]]
    rest = entries[_NUM_ROWS:]
    shown.append((f"{len(rest)} others", sum(map(own, rest)), sum(entry.count for entry in rest)))
    for name, time, count in shown:
        lines.append(f"| {name} | {time / 1000 / steps:.2f} | {time / whole:.1%} | {count / steps:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, default="quarter")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--output-dir", "-o", type=Path, default=HERE / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = profiled(given.model, given.work.resolve(), given.device, given.batch_size, given.steps)
    text = table(found, given.steps, given.device.startswith("cuda"))
    name = f"profile-{given.model}-b{given.batch_size}-{given.device.split(':')[0]}.md"
    with whole_file(given.output_dir / name) as file:
        file.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
