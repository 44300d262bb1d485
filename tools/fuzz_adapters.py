"""Broken and hostile files of every kind -> how reading and applying each of them ends.

    python tools/fuzz_adapters.py --cases 2000 -o benchmarks/fuzz_adapters.json

Every case is one of a few true files, changed in one to three ways that its number decides (bytes, header, notes,
or the tensors themselves in a file that is whole), or bytes of chance. It is
looked at and, where it is accepted, laid on the embedded base, in a process with little memory and a time limit:

    read        it was accepted and laid on the base
    refused     a sentence said why not
    traceback   anything else was raised, for want of memory too: a fault of ours
    hang        it took longer than the limit: a fault of ours
    crash       the process died: a fault of ours

Some pickles carry code that would write a file. The last line says whether it was ever written.
"""

import argparse
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save, save_file

from infusion.base import load_base
from infusion.base.cross_attention import cross_attentions
from infusion.errors import UserError
from infusion.files import whole_file
from infusion.foreign import customized, inspect
from infusion.toybox import FOUNDATION_DIR

SEED = 7
SECONDS = 60  # for one case; an honest file takes one or two
MORE_MEMORY_BYTES = 3 * 2**30  # beside what the process takes with torch loaded
CHUNK = 100
OUTCOMES = ("read", "refused", "traceback", "hang", "crash")
HOSTILE = (
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    1e308,
    float("nan"),
    "",
    "../../etc/passwd",
    "\x1b[2J",
    None,
    [],
    {},
    [[]],
    True,
)

# --- true files ---


def make_originals(folder: Path) -> None:
    """One true file or folder of every kind, for the embedded base."""
    base = load_base(device="cpu")
    random_numbers = torch.Generator().manual_seed(SEED)

    def noise(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=random_numbers)

    layers = cross_attentions(base.network)
    shapes = {f"{path}.to_q": tuple(layer.to_q.weight.shape) for path, layer in layers.items()}
    text = {"encoder.layers.0.self_attn.q_proj": (160, 160)}
    pairs = {path: (noise(4, shape[1]), noise(shape[0], 4)) for path, shape in shapes.items()}
    flat = {path: f"lora_unet_{path.replace('.', '_')}" for path in shapes}
    kohya = {
        f"{flat[path]}.lora_{end}.weight": t
        for path, pair in pairs.items()
        for end, t in zip(("down", "up"), pair, strict=True)
    }
    kohya |= {f"{flat[path]}.alpha": torch.tensor(2.0) for path in shapes}
    for path, shape in text.items():
        name = f"lora_te_text_model_{path.replace('.', '_')}"
        kohya |= {f"{name}.lora_down.weight": noise(2, shape[1]), f"{name}.lora_up.weight": noise(shape[0], 2)}
    said = {"ss_steps": "500", "ss_tag_frequency": '{"10_sks cup": {"sks": 1}}', "ss_sd_model_name": "base"}
    _save(kohya, folder / "kohya" / "lora-000010.safetensors", said)
    peft = {f"{path}.lora_{end}.weight": t for path, pair in pairs.items() for end, t in zip("AB", pair, strict=True)}
    config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {"attn2.to_q": 3}, "unet.use_rslora": True}
    _save(
        {f"unet.{name}": tensor for name, tensor in peft.items()},
        folder / "diffusers" / "pytorch_lora_weights.safetensors",
        {"lora_adapter_metadata": json.dumps(config)},
    )
    _save({f"base_model.model.{name}": t for name, t in peft.items()}, folder / "peft" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "rank_pattern": {"to_q": 4}, "base_model_name_or_path": "x"}
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(config))
    lycoris: dict[str, torch.Tensor] = {}
    for number, (path, shape) in enumerate(shapes.items()):
        parts = {"hada_w1_a": noise(shape[0], 4), "hada_w1_b": noise(4, shape[1])}
        parts |= {"hada_w2_a": noise(shape[0], 4), "hada_w2_b": noise(4, shape[1])}
        if number % 2:
            parts = {"lokr_w1": noise(8, 8), "lokr_w2_a": noise(shape[0] // 8, 2), "lokr_w2_b": noise(2, shape[1] // 8)}
        if number % 3 == 0:
            parts["dora_scale"] = 1 + noise(shape[0], 1)
        lycoris |= {f"{flat[path]}.{name}": tensor for name, tensor in (parts | {"alpha": torch.tensor(1.0)}).items()}
    _save(lycoris, folder / "lycoris" / "file.safetensors")
    _save({"<my-cup>": noise(2, 160)}, folder / "words" / "learned_embeds.safetensors")
    _torch(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": noise(2, 160)}, "name": "cup", "step": 9},
        folder / "a1111" / "cup.pt",
    )
    _torch({"<my-cup>": noise(160)}, folder / "bin" / "learned_embeds.bin")
    custom = {
        f"{path}.processor.{name}_custom_diffusion.weight": getattr(layer, name).weight.detach()
        + noise(*getattr(layer, name).weight.shape)
        for path, layer in layers.items()
        for name in ("to_k", "to_v")
    }
    _torch(custom, folder / "custom" / "pytorch_custom_diffusion_weights.bin")
    _torch({"<new1>": noise(160)}, folder / "custom" / "<new1>.bin")
    shutil.copytree(FOUNDATION_DIR / "text_encoder", folder / "parts" / "text_encoder")
    shutil.copytree(FOUNDATION_DIR, folder / "pipeline", symlinks=True)
    for part in ("unet", "vae"):  # too large to copy for every case; they stay as they are
        weights = folder / "pipeline" / part / "diffusion_pytorch_model.safetensors"
        weights.unlink()
        weights.symlink_to(FOUNDATION_DIR / part / "diffusion_pytorch_model.safetensors")


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)


def _torch(content: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


# --- changes ---


def make_case(number: int, originals: Path, folder: Path, canary: Path) -> Path:
    """The file or folder of a case, made in `folder`; a function of its number alone."""
    chance = random.Random(SEED * 100_003 + number)
    if chance.random() < 0.1:
        return _bytes_of_chance(chance, folder, canary)
    kinds = sorted(path.name for path in originals.iterdir())
    kind = kinds[number % len(kinds)]
    target = folder / kind
    shutil.copytree(originals / kind, target, symlinks=True)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        files = sorted(path for path in target.rglob("*") if path.is_file() and not path.is_symlink())
        path = chance.choice(files)
        changes = CHANGES.get(path.suffix, [_flip, _cut])
        content = chance.choice(changes)(chance, path.read_bytes(), canary)
        path.write_bytes(content)
    weights = sorted(path for path in target.iterdir() if path.suffix in (".safetensors", ".pt"))
    return weights[0] if len(weights) == 1 and chance.random() < 0.5 else target


def _bytes_of_chance(chance: random.Random, folder: Path, canary: Path) -> Path:
    path = folder / f"chance{chance.choice(['.safetensors', '.pt', '.bin', '.ckpt', ''])}"
    make = chance.choice([_noise, _evil_pickle, _evil_zip, _evil_header])
    path.write_bytes(make(chance, b"", canary))
    return path


def _noise(chance: random.Random, content: bytes, canary: Path) -> bytes:
    return chance.randbytes(chance.choice([0, 1, 7, 8, 9, 100, 5000]))


def _flip(chance: random.Random, content: bytes, canary: Path) -> bytes:
    """Some bytes changed, mostly near the beginning."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        if changed:
            changed[chance.randrange(min(len(changed), chance.choice([8, 64, 2000, len(changed)])))] = chance.randrange(
                256
            )
    return bytes(changed)


def _cut(chance: random.Random, content: bytes, canary: Path) -> bytes:
    return content[: chance.randrange(len(content) + 1)] + chance.choice([b"", b"", chance.randbytes(50)])


def _header_length(chance: random.Random, content: bytes, canary: Path) -> bytes:
    length = chance.choice([0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1])
    return length.to_bytes(8, "little") + content[8:]


def _header(chance: random.Random, content: bytes, canary: Path) -> bytes:
    """The header of a .safetensors file with one thing in it changed."""
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        name = chance.choice(sorted(header))
        entry = header[name]
    except (ValueError, IndexError, TypeError, KeyError, RecursionError):
        return content
    change = chance.randrange(7)
    if change == 0 and isinstance(entry, dict) and entry:
        entry[chance.choice(sorted(entry))] = chance.choice(HOSTILE)
    elif change == 1 and isinstance(entry, dict) and isinstance(entry.get("shape"), list):
        entry["shape"] = chance.choice([entry["shape"][::-1], [1, *entry["shape"]], [2**40], [0], entry["shape"] * 9])
    elif change == 2:
        header[chance.choice(["../../x", "x" * 10_000, "", "unet.", f"{name}.x", "\x1b[2J", name.upper()])] = (
            header.pop(name)
        )
    elif change == 3:
        header[name] = chance.choice(HOSTILE)
    elif change == 4:
        said = header.setdefault("__metadata__", {})
        keys = [
            "ss_steps",
            "ss_tag_frequency",
            "lora_adapter_metadata",
            "infusion",
            "modelspec.trigger_phrase",
            "software",
        ]
        hostile = [
            *map(str, HOSTILE),
            "[" * 100_000,
            '{"unet.r": 0}',
            '{"unet.alpha_pattern": {"(a+)+$": 1}}',
            "a" * 10**5,
        ]
        if isinstance(said, dict):
            said[chance.choice(keys)] = chance.choice(hostile)
    elif change == 5 and isinstance(entry, dict):
        entry["dtype"] = chance.choice(["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "x"])
    else:
        header.pop(name)
    try:
        text = json.dumps(header).encode()
    except (ValueError, RecursionError):
        return content
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _tensors(chance: random.Random, content: bytes, canary: Path) -> bytes:
    """A file that is whole, with one of its tensors another than it was."""
    torch_file = content.startswith(b"PK")
    try:
        if torch_file:
            loaded = torch.load(io.BytesIO(content), weights_only=True)
        else:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            said = header.get("__metadata__")
            loaded = load(content)
    except Exception:  # it was broken before
        return content
    tensors = loaded.get("string_to_param", loaded)
    name = chance.choice(sorted(tensors))
    tensor = tensors[name]
    rows = chance.choice([0, 1, 3, 5000])
    others: list[Callable[[], torch.Tensor]] = [
        lambda: tensor.half(),
        lambda: tensor.to(torch.bfloat16),
        lambda: tensor.double(),
        lambda: tensor.to(torch.int8),
        lambda: tensor * chance.choice([0.0, 1e6, 1e38, float("nan"), float("inf")]),
        lambda: tensor[None],
        lambda: tensor.flatten(),
        lambda: tensor.T.contiguous() if tensor.dim() == 2 else tensor.sum(),
        lambda: torch.ones(rows, *tensor.shape[1:]),
        lambda: torch.ones(*tensor.shape[:-1], rows) if tensor.dim() else torch.ones(rows),
        lambda: tensor.flatten()[:0],
        lambda: torch.ones(2, 2, 2, 2),
    ]
    ends = [
        "alpha",
        "dora_scale",
        "diff",
        "diff_b",
        "lora_mid.weight",
        "lokr_w1",
        "hada_t1",
        "lora_B.bias",
        "w_norm",
        "x",
    ]
    change = chance.randrange(4)
    if change == 0:
        tensors[chance.choice([name[1:], f"{name}.x", f"unet.{name}", name.replace("to_q", "conv1"), "../x"])] = tensor
    elif change == 1:
        tensors[f"{name.partition('.lora')[0].removesuffix('.alpha')}.{chance.choice(ends)}"] = chance.choice(others)()
    else:
        tensors[name] = chance.choice(others)()
    if change in (0, 2) and len(tensors) > 1 and chance.random() < 0.5:
        tensors.pop(name)
    if not torch_file:
        return save({key: value.clone().contiguous() for key, value in tensors.items()}, metadata=said)
    file = io.BytesIO()
    torch.save(loaded, file)
    return file.getvalue()


def _notes(chance: random.Random, content: bytes, canary: Path) -> bytes:
    """A .safetensors file that is whole and says something strange of itself."""
    try:
        tensors = load(content)
    except Exception:  # it was broken before
        return content
    notes = [{"unet.r": 4, "unet.lora_alpha": value} for value in HOSTILE]
    notes += [{"unet.peft_type": "OFT"}, {"unet.init_lora_weights": "pissa"}, {"unet.alpha_pattern": {"(a+)+$": 1}}]
    notes += [{"unet.use_rslora": "x", "unet.lora_alpha": 3}, {"": 1}, {"unet.rank_pattern": [1]}]
    keys = ["ss_steps", "ss_tag_frequency", "infusion", "modelspec.trigger_phrase", "software", "training_info", "name"]
    values = [*map(str, HOSTILE), "[" * 100_000, "a" * 10**5, '{"step": 1e400}', '{"10_a b c": 1}', '{"name": ["x"]}']
    said = {chance.choice(keys): chance.choice(values) for _ in range(2)}
    if chance.random() < 0.5:
        said = {"lora_adapter_metadata": json.dumps(chance.choice(notes))}
    return save(tensors, metadata=said)


def _numbers(chance: random.Random, content: bytes, canary: Path) -> bytes:
    """Numbers that are not finite, or huge, at the end of a file."""
    value = chance.choice([float("nan"), float("inf"), 3e38, -1e30])
    return content[:-64] + torch.full((16,), value).numpy().tobytes() if len(content) > 64 else content


def _json(chance: random.Random, content: bytes, canary: Path) -> bytes:
    """One value in a JSON file changed."""
    try:
        found = json.loads(content)
        key = chance.choice(sorted(found))
    except (ValueError, IndexError, TypeError):
        return content
    found[key] = chance.choice([*HOSTILE, ["os", "system"], [["x"], "y"], {"a": "../../b"}, "[" * 1000])
    return json.dumps(found).encode()


def _evil_pickle(chance: random.Random, content: bytes, canary: Path) -> bytes:
    """A torch file whose pickle asks for code, for memory without end, or for tensors larger than their numbers."""

    class Code:
        def __reduce__(self) -> Any:
            return chance.choice(
                [(os.system, (f"touch {canary}",)), (exec, (f"open({str(canary)!r}, 'w')",)), (eval, ("1",))]
            )

    def tensor(numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
        class Pickler(pickle.Pickler):
            def persistent_id(self, thing: Any) -> Any:
                return ("storage", torch.FloatStorage, "0", "cpu", numel) if thing is self else None

            def reducer_override(self, thing: Any) -> Any:
                return NotImplemented

        class Tensor:
            def __reduce__(self) -> Any:
                arguments = (pickler, offset, size, stride, False, {})
                return torch._utils._rebuild_tensor_v2, arguments

        file = io.BytesIO()
        pickler = Pickler(file, protocol=2)
        pickler.dump({"<x>": Tensor()})
        return file.getvalue()

    payload = chance.choice(
        [
            lambda: pickle.dumps({"<x>": Code()}, protocol=2),
            lambda: pickle.dumps(Code(), protocol=4),
            lambda: b"\x80\x02}r\xff\xff\xff\x7f.",  # an object numbered two thousand million
            lambda: b"\x80\x02" + b"]" * 200_000 + b".",
            lambda: b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".",
            lambda: b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",
            lambda: _nested(60),
            lambda: tensor(2**40, (2**40,), (1,)),
            lambda: tensor(4, (2**20, 160), (0, 0)),
            lambda: tensor(4, (160,), (1,), 2**50),
            lambda: tensor(4, (-5, 160), (1, 1)),
            lambda: tensor(160, (160,), (1,)),
        ]
    )()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/data/0", bytes(640))
        archive.writestr(chance.choice(["archive/byteorder", "../../x", "archive/version"]), b"little")
    return file.getvalue()


def _nested(depth: int) -> bytes:
    """A dictionary of dictionaries that are one and the same, level by level: small, and without end to walk."""
    thing: dict[str, Any] = {"x": "y"}
    for _ in range(depth):
        thing = dict.fromkeys("abcdefgh", thing)
    return pickle.dumps(thing, protocol=2)


def _evil_zip(chance: random.Random, content: bytes, canary: Path) -> bytes:
    """A zip file that is small and holds much."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(chance.choice([10, 2**28])))
        archive.writestr("archive/data/0", bytes(1000))
    return file.getvalue()


def _evil_header(chance: random.Random, content: bytes, canary: Path) -> bytes:
    """A .safetensors file that claims much, or is nested deeply."""
    rank = 10**6 - 1
    claims = {"dtype": "F32", "shape": [rank, 2**20], "data_offsets": [0, 4 * rank * 2**20]}
    text = chance.choice(
        [
            lambda: b"[" * 2**20,
            lambda: json.dumps({"lora_unet_x.lora_down.weight": claims}).encode(),
            lambda: json.dumps(
                {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(60_000)}
            ).encode(),
            lambda: save({"a.lora_A.weight": torch.ones(5000, 1)})[8:],
            lambda: save({"x": torch.ones(4, 4), "y": torch.ones(2)})[8:],
            lambda: b"{}",
        ]
    )()
    return len(text).to_bytes(8, "little") + text


Change = Callable[[random.Random, bytes, Path], bytes]
_OF_TORCH: list[Change] = [_flip, _cut, _evil_pickle, *[_tensors] * 5]
CHANGES: dict[str, list[Change]] = {
    ".safetensors": [_flip, _cut, _header_length, _header, _numbers, *[_tensors] * 6, *[_notes] * 3],
    ".pt": _OF_TORCH,
    ".bin": _OF_TORCH,
    ".json": [_json, _json, _json, _flip, _cut],
}

# --- running ---


def outcome(path: Path) -> tuple[str, str]:
    """How reading a file and laying it on the base ends, and what was said."""
    try:
        found = inspect(path)
        customized(found, "toybox", "cpu")
    except UserError as error:
        return "refused", str(error)
    except TimeoutError:
        return "hang", ""
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return "read", found.kind


def work(first: int, last: int, originals: Path, canary: Path) -> None:
    """Run some cases in this process, and print how each of them ended."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    for library in (logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MORE_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, _late)
    for number in range(first, last):
        print(json.dumps([number]), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            path = make_case(number, originals, Path(folder), canary)
            signal.alarm(SECONDS)
            ended, said = outcome(path)
            signal.alarm(0)
            kind = path.relative_to(folder).parts[0].split(".")[0]
        print(json.dumps([number, kind, ended, said.replace(folder, "")[:500]]), flush=True)


def _late(*_: Any) -> None:
    raise TimeoutError


Result = tuple[int, str, str, str]  # number, kind, outcome, what was said


def run(cases: int, workdir: Path, processes: int) -> list[Result]:
    """All cases, in processes of a hundred each."""
    if not (workdir / "originals").exists():
        make_originals(workdir / "originals")
    firsts = range(0, cases, CHUNK)
    results: list[Result] = []
    with ThreadPoolExecutor(processes) as pool:
        for found in pool.map(lambda first: _run_chunk(first, min(cases, first + CHUNK), workdir), firsts):
            results += found
            print(f"{len(results)} of {cases}: {dict(Counter(ended for _, _, ended, _ in results))}", flush=True)
    return results


def _run_chunk(first: int, last: int, workdir: Path) -> list[Result]:
    """Some cases; after one that the process dies of, the rest in another process."""
    results: list[Result] = []
    while first < last:
        command = [sys.executable, __file__, "--work", str(first), str(last), "--workdir", str(workdir)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=2 * CHUNK * SECONDS)
        lines = [json.loads(line) for line in process.stdout.splitlines()]
        results += [(line[0], line[1], line[2], line[3]) for line in lines if len(line) > 1]
        begun = max((line[0] for line in lines), default=first)
        if len(lines) % 2 or not lines:
            results.append((begun, "?", "crash", f"exit {process.returncode}: {process.stderr[-300:]}"))
        first = begun + 1
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--workdir", type=Path, help="where the files lie; a new folder by default")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    workdir = args.workdir or Path(tempfile.mkdtemp(prefix="fuzz-"))
    if args.work:
        return work(*args.work, workdir / "originals", workdir / "canary")
    results = run(args.cases, workdir, args.processes)
    by_kind = {
        kind: Counter(ended for _, k, ended, _ in results if k == kind) for kind in sorted({r[1] for r in results})
    }
    faults = [result for result in results if result[2] in OUTCOMES[2:]]
    about = {
        "command": f"python tools/fuzz_adapters.py --cases {args.cases}",
        "seed": SEED,
        "cases": len(results),
        "outcomes": {ended: sum(counts[ended] for counts in by_kind.values()) for ended in OUTCOMES},
        "by_kind": by_kind,
        "code_of_a_file_ran": (workdir / "canary").exists(),
        "faults": faults,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "safetensors")},
    }
    text = json.dumps(about, indent=1) + "\n"
    if args.output:
        with whole_file(args.output) as file:
            file.write_text(text)
    print(text)
    (workdir / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    print(f"Code of a file ran: {about['code_of_a_file_ran']}. What was said of every case: {workdir}/results.jsonl")


if __name__ == "__main__":
    main()
