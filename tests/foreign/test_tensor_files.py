"""Files are hostile until read: what they claim, what they ask for, and what they name."""

import importlib.util
import io
import json
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from infusion.errors import UserError
from infusion.foreign import customized, inspect
from infusion.foreign.tensor_files import MAX_HEADER_BYTES, read_json, read_tensor_file, shown


def with_header(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape=(2, 2), span=(0, 16), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cut off"),
        (b"\x01\x02", "cut off"),
        (with_header({"x": entry()}, length=2**63), "cut off"),
        (with_header(b"{" * 50_000), "not JSON"),
        (with_header(b"[]"), "no JSON object"),
        (with_header({"__metadata__": [1]}), "metadata are no JSON object"),
        (with_header({"x": entry(span=(0, 2**50))}, bytes(16)), "malformed"),
        (with_header({"x": entry(shape=(2**30, 2**30))}, bytes(16)), "malformed"),
        (with_header({"x": entry(shape=(-2, -2))}, bytes(16)), "malformed"),
        (with_header({"x": entry(shape=(True, 4))}, bytes(16)), "malformed"),
        (with_header({"x": entry(dtype="F4")}, bytes(16)), "malformed"),
        (with_header({"x": entry(dtype={})}, bytes(16)), "malformed"),
        (with_header({"x" * 1000: entry()}, bytes(16)), "malformed"),
        (with_header({"x": 3}, bytes(16)), "malformed"),
        (with_header({str(i): entry(shape=(0,), span=(0, 0)) for i in range(60_000)}), "60,000 tensors"),
    ],
)
def test_a_header_is_believed_only_as_far_as_the_file_goes(tmp_path, content, why):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=f"cannot be read as a weight file: .*{why}"):
        read_tensor_file(tmp_path / "x.safetensors")


def test_a_header_has_a_limit(tmp_path):
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(2 * MAX_HEADER_BYTES)
    with pytest.raises(UserError, match="are allowed"):
        read_tensor_file(tmp_path / "x.safetensors")


def test_headers_that_agree_with_themselves_but_not_with_safetensors(tmp_path):
    """Tensors that overlap or leave gaps are left to safetensors itself to refuse."""
    (tmp_path / "x.safetensors").write_bytes(with_header({"<x>": entry(shape=(1, 2), span=(0, 8))}, bytes(16)))
    file = read_tensor_file(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="cannot be read as a weight file"):
        file.tensors()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_numbers_that_are_not_finite(tmp_path, value, suffix):
    tensors = {"<x>": torch.tensor([[1.0, value]])}
    path = tmp_path / f"x.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    with pytest.raises(UserError, match="holds numbers that are not finite"):
        read_tensor_file(path).tensors()


def test_files_of_torch_are_read_as_torch_reads_them(tmp_path):
    numbers = torch.randn(6, 4)
    content: Any = OrderedDict(
        whole=numbers,
        part=numbers[1:5:2, 1:3],
        turned=numbers.T,
        half=numbers.half(),
        brain=numbers.bfloat16(),
        whole_numbers=torch.arange(5),
        parameter=torch.nn.Parameter(numbers * 2),
        scalar=torch.tensor(3.0),
        empty=torch.empty(0, 4),
    )
    content._metadata = {"version": 1}
    torch.save({"inner": content, "step": 7, "name": "x"}, tmp_path / "x.bin")
    file = read_tensor_file(tmp_path / "x.bin")
    read = file.tensors()
    assert file.metadata == {"step": "7", "name": "x"}
    assert read.keys() == {f"inner.{name}" for name in content}
    for name, tensor in content.items():
        assert read[f"inner.{name}"].dtype == tensor.dtype
        assert name == "empty" or torch.equal(read[f"inner.{name}"], tensor)


def archive(payload, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        zipped.writestr("archive/data.pkl", payload)
        zipped.writestr("archive/data/0", bytes(64))
    return file.getvalue()


class Code:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def tensor_pickle(size, stride, offset):
    """A pickle of one tensor over the 16 numbers of the archive, which says of it what it is told to."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", 2**40) if thing is self else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (pickler, offset, size, stride, False, {})

    file = io.BytesIO()
    pickler = Pickler(file, protocol=2)
    pickler.dump({"<x>": Tensor()})
    return file.getvalue()


def test_the_honest_tensor_of_the_next_test_is_read(tmp_path):
    (tmp_path / "x.bin").write_bytes(archive(tensor_pickle((4, 4), (4, 1), 0)))
    assert read_tensor_file(tmp_path / "x.bin").shapes == {"<x>": (4, 4)}


@pytest.mark.parametrize(
    "tensor",
    [
        ((2**40,), (1,), 0),
        ((4, 5), (5, 1), 0),
        ((16,), (1,), 1),
        ((2**20, 160), (0, 0), 0),
        ((4,), (-1,), 8),
        ((-4,), (1,), 0),
    ],
)
def test_tensors_are_not_larger_than_their_numbers(tmp_path, tensor):
    (tmp_path / "x.bin").write_bytes(archive(tensor_pickle(*tensor)))
    with pytest.raises(UserError, match=r"cannot be read as a weight file: .*tensor"):
        read_tensor_file(tmp_path / "x.bin")


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_no_code_of_a_file_runs(tmp_path, suffix):
    canary = tmp_path / "canary"
    path = tmp_path / f"x{suffix}"
    for payload in (
        pickle.dumps(Code(canary)),
        pickle.dumps({"<x>": Code(canary)}, protocol=2),
        b"cos\nsystem\n(V:\ntR.",
    ):
        path.write_bytes(archive(payload))
        with pytest.raises(UserError, match=r"it asks for .*system, and only tensors and dictionaries are read"):
            inspect(path)
    path.write_bytes(pickle.dumps(Code(canary)))
    with pytest.raises(UserError, match=r"no torch file of torch 1\.6 or later"):
        inspect(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # an object numbered two thousand million
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",  # a text longer than the file
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"",
        b".",
    ],
)
def test_pickles_that_claim_much(tmp_path, payload):
    (tmp_path / "x.pt").write_bytes(archive(payload))
    with pytest.raises(UserError):
        inspect(tmp_path / "x.pt")


def test_a_pickle_without_end_to_walk(tmp_path):
    thing: Any = {"x": "y"}
    for _ in range(60):
        thing = dict.fromkeys("abcdefgh", thing)
    (tmp_path / "x.pt").write_bytes(archive(pickle.dumps(thing, protocol=2)))
    with pytest.raises(UserError, match="holds no tensor"):
        inspect(tmp_path / "x.pt")
    wide: Any = {str(i): "y" for i in range(1000)}
    for _ in range(2):
        wide = {str(i): wide for i in range(1000)}
    (tmp_path / "x.pt").write_bytes(archive(pickle.dumps(wide, protocol=2)))
    with pytest.raises(UserError, match="holds too many things"):
        inspect(tmp_path / "x.pt")


def test_a_zip_bomb(tmp_path):
    (tmp_path / "x.pt").write_bytes(archive(bytes(2**24), zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="compressed or encrypted, as torch's files never are"):
        inspect(tmp_path / "x.pt")


def test_foreign_text_is_one_printable_line():
    assert shown("a\x1b[2J\n b\u202e\x00c") == "a [2J b c"
    assert len(shown("x" * 10_000)) == 80


def test_json_beside_weights(tmp_path):
    for content in (b"[1]", b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.json"):
            read_json(tmp_path / "x.json")


# --- what names lead to ---


def lora(rank=2):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    return {f"{name}.lora_A.weight": torch.ones(rank, 16), f"{name}.lora_B.weight": torch.ones(16, rank)}


def test_absurd_ranks(tmp_path):
    save_file(lora(5000), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="of rank 5,000, where 1 to 4,096 can be"):
        inspect(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"alpha_pattern": {"(a+)+$": 1}}, "only names of layers are read there"),
        ({"lora_alpha": "x"}, "are no numbers"),
        ({"lora_alpha": float("nan")}, "are no numbers"),
        ({"lora_alpha": 10**400}, "are no numbers"),
        ({"peft_type": "OFT"}, "PEFT's OFT"),
        ({"init_lora_weights": "pissa_niter_16"}, "for which the base was changed too"),
    ],
)
def test_notes_of_peft_are_not_believed_blindly(base_dir, tmp_path, config, why):
    save_file(lora(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2} | config))
    with pytest.raises(UserError, match=why):
        customized(inspect(tmp_path), base_dir, "cpu")


def test_a_pipeline_leads_nowhere_else(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert inspect(tmp_path).kind == "pipeline"
    for library in ("os", "../unet", "antigravity", 3):
        (tmp_path / "model_index.json").write_text(json.dumps(index | {"unet": [library, "path"]}))
        with pytest.raises(UserError, match="only parts of diffusers and transformers are"):
            inspect(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    shards = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for name in ("../../../etc/passwd", "/etc/passwd", 3):
        shards.write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(UserError, match="which is no file beside it"):
            inspect(tmp_path)
    shards.unlink()
    config = tmp_path / "unet" / "config.json"
    original = config.read_text()
    config.write_text(json.dumps(json.loads(original) | {"layers_per_block": 10**9}))
    with pytest.raises(UserError, match="asks for too many layers_per_block"):
        inspect(tmp_path)
    config.write_text(original)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"as \.bin files, which may run code"):
        inspect(tmp_path)


def test_links_are_followed(tmp_path):
    save_file(lora(), tmp_path / "blob")
    (tmp_path / "x.safetensors").symlink_to(tmp_path / "blob")
    assert inspect(tmp_path / "x.safetensors").kind == "LoRA"


@pytest.mark.slow
def test_a_hundred_broken_files(tmp_path):
    """The beginning of what tools/fuzz_adapters.py runs: each is applied to the base or refused in a sentence."""
    tool = Path(__file__).parents[2] / "tools" / "fuzz_adapters.py"
    spec = importlib.util.spec_from_file_location("fuzz_adapters", tool)
    assert spec and spec.loader
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    fuzz.make_originals(tmp_path / "originals")
    ended: Counter[str] = Counter()
    for number in range(100):
        (tmp_path / str(number)).mkdir()
        path = fuzz.make_case(number, tmp_path / "originals", tmp_path / str(number), tmp_path / "canary")
        how, said = fuzz.outcome(path)
        assert how in ("read", "refused"), (number, path, said)
        ended[how] += 1
    assert min(ended["read"], ended["refused"]) > 10
    assert not (tmp_path / "canary").exists()
