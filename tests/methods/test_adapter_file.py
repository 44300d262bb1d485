import json

import pytest
import torch
from conftest import tiny_pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from infusion.base import load_base, same_base
from infusion.errors import UserError
from infusion.methods.adapter_file import _digest, load_adapter, read_adapter_file, save_adapter
from infusion.methods.infusion import Infusion
from infusion.methods.infusion.adapter import InfusionAdapter


@pytest.fixture
def saved(base, concept, tmp_path):
    adapter = Infusion().adapter(base, concept)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data.normal_()
    path = tmp_path / "my-cat.safetensors"
    save_adapter(adapter, path, base, training={"seed": 0})
    return adapter, path


def test_the_file_explains_itself(saved, base):
    _, path = saved
    about, tensors = read_adapter_file(path)
    assert (about["concept_name"], about["class_noun"], about["method"]) == ("my-cat", "cat", "infusion")
    assert about["settings"]["layers"] == "all"
    expected = {"id": base.id, "family": "stable-diffusion-v1", "fingerprint": base.fingerprint()}
    assert about["base"] == expected
    assert all(name.endswith("attn2.to_v.value_residual") for name in tensors)


@pytest.mark.parametrize("place", ["tensor", "metadata"])
def test_a_flipped_bit_is_found(saved, place):
    _, path = saved
    content = bytearray(path.read_bytes())
    content[-1 if place == "tensor" else content.index(b"my-cat")] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_adapter_file(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64])
def test_a_corrupt_file_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a readable"):
        read_adapter_file(tmp_path / "a.safetensors")


def test_foreign_and_missing_files_are_refused(saved, tmp_path):
    save_file({"lora_A": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="another tool"):
        read_adapter_file(tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="no adapter file"):
        read_adapter_file(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="not a readable"):
        read_adapter_file(tmp_path)


def rewritten(path, tensors=None, **changes):
    """The file with another description or other tensors, and a checksum that fits."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["infusion"]) | changes
    metadata["infusion"] = json.dumps({key: value for key, value in about.items() if value is not ...}, default=str)
    tensors = load_file(path) if tensors is None else tensors
    del metadata["infusion.sha256"]
    metadata["infusion.sha256"] = _digest(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "new"},
        {"schema": 99},
        {"method": ["infusion"]},
        {"method": "magic"},
        {"settings": []},
        {"settings": {"layer": "all"}},
        {"base": "toybox"},
        {"base": {"id": "x", "fingerprint": 7}},
        {"base": {"id": "x", "fingerprint": "zz"}},
        {"concept_name": "a b"},
        {"class_noun": None},
        {"tensors": {}},
        {"tensors": {"a..to_v.value_residual": torch.zeros(3)}},
        {"tensors": {"x.to_v.value_residual": torch.tensor(1.0)}},
        {"tensors": {"x.to_v.value_residual": torch.tensor([float("nan")])}},
        {"tensors": {"x.to_v.value_residual": torch.tensor([1])}},
    ],
    ids=str,
)
def test_odd_contents_get_a_sentence(saved, base, changes):
    _, path = saved
    rewritten(path, **changes)
    with pytest.raises(UserError):
        load_adapter(path, base)


def test_an_adapter_for_another_base_is_refused_unless_asked_for(saved, tmp_path):
    adapter, path = saved
    tiny_pipeline(seed=7).save_pretrained(tmp_path / "other")
    other = load_base(tmp_path / "other", device="cpu")
    with pytest.raises(UserError) as refusal:
        load_adapter(path, other)
    assert "tiny" in str(refusal.value) and "other" in str(refusal.value)
    loaded = load_adapter(path, other, any_base=True)
    assert isinstance(loaded, InfusionAdapter)
    assert all(torch.equal(r, adapter.residuals()[path]) for path, r in loaded.residuals().items())


def test_layers_the_base_lacks_are_refused(saved, base, tmp_path):
    adapter, _ = saved
    residuals = adapter.residuals()
    path = next(iter(residuals))
    smaller = InfusionAdapter(Infusion(), "my-cat", "cat", {path: 5})
    save_adapter(smaller, tmp_path / "small.safetensors", base)
    with pytest.raises(UserError, match="another architecture"):
        load_adapter(tmp_path / "small.safetensors", base)


def test_a_base_is_recognised_in_other_precisions(base, base_dir):
    for dtype in (torch.float16, torch.bfloat16):
        assert same_base(load_base(base_dir, device="cpu", dtype=dtype).fingerprint(), base.fingerprint())


def test_another_tool_can_read_the_tensors(saved):
    adapter, path = saved
    tensors = load_file(path)
    assert sum(tensor.numel() for tensor in tensors.values()) == adapter.num_parameters


def test_modelspec_names_the_trigger(saved):
    with safe_open(saved[1], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/infusion"
    assert metadata["modelspec.trigger_phrase"] == "<my-cat>"
