"""LoRAs of other tools: names in their keys, and what they say of their trigger words and their base."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from infusion.base import load_base
from infusion.errors import UserError
from infusion.foreign import customized, inspect
from infusion.toybox import TOYBOX

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
KOHYA_LAYER = "lora_unet_" + LAYER.replace(".", "_")


def not_yet(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


@cache
def weight() -> Tensor:
    """Of the layer, in the untouched base."""
    return load_base(TOYBOX, "cpu").network.get_parameter(f"{LAYER}.weight").detach()


def factors(rank: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    out_features, in_features = weight().shape
    down = torch.randn(rank, in_features, generator=generator) / 10
    return down, torch.randn(out_features, rank, generator=generator) / 10


def saved(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    return path


# The adapter's name is part of PEFT's keys, and people choose it.


@pytest.mark.parametrize(
    "name",
    ["default", *(pytest.param(name, marks=not_yet("any adapter name is read")) for name in ("default_0", "my_style"))],
)
def test_adapter_names_in_keys(tmp_path: Path, name: str) -> None:
    down, up = factors()
    keys = {"lora_A": down, "lora_B": up}
    tensors = {f"unet.{LAYER}.{key}.{name}.weight": tensor for key, tensor in keys.items()}
    base, _ = customized(inspect(saved(tmp_path / "style.safetensors", tensors)), TOYBOX, "cpu")
    changed = base.network.get_parameter(f"{LAYER}.weight")
    torch.testing.assert_close(changed, weight() + up @ down, rtol=0, atol=1e-6)


# Where images have caption files, the folder's name is not used in training: sd-scripts #1441 and #1854,
# bmaltais/kohya_ss #890 and #440.


def trigger(folder: Path, **metadata: Any) -> str | None:
    down, up = factors()
    tensors = {f"{KOHYA_LAYER}.lora_down.weight": down, f"{KOHYA_LAYER}.lora_up.weight": up}
    told = {key: json.dumps(value) for key, value in metadata.items()}
    return inspect(saved(folder / "kohya.safetensors", tensors, told)).trigger


def test_without_captions_the_folder_says_the_trigger(tmp_path: Path) -> None:
    assert trigger(tmp_path, ss_tag_frequency={"10_sks cat": {"sks cat": 20}}) == "sks cat"


@not_yet("captions without the folder's words were what was trained")
def test_captions_say_another_trigger_than_the_folder(tmp_path: Path) -> None:
    assert trigger(tmp_path, ss_tag_frequency={"10_sks cat": {"ohwx woman": 20, "solo": 19}}) != "sks cat"


@not_yet("a folder's one word that is among no captions was not trained")
def test_a_folder_of_one_word_that_no_caption_has(tmp_path: Path) -> None:
    assert trigger(tmp_path, ss_tag_frequency={"10_girl": {"mika": 20, "1girl": 20, "halo": 18}}) != "girl"


@not_yet("regularization images do not hide the trigger")
def test_beside_regularization_images_the_trigger_is_still_read(tmp_path: Path) -> None:
    tags = {"10_sks cat": {"sks cat": 20}, "1_cat": {"cat": 200}}
    regularization = {"1_cat": {"n_repeats": 1}}
    assert trigger(tmp_path, ss_tag_frequency=tags, ss_reg_dataset_dirs=regularization) == "sks cat"


# A model card's front matter is YAML, and its body may hold examples.

PLAIN = "---\nbase_model: some/model\ninstance_prompt: a photo of sks dog\n---\n"


@pytest.mark.parametrize(
    "card",
    [
        pytest.param(PLAIN, id="plain"),
        pytest.param(PLAIN.replace("a photo", ">-\n  a photo"), id="folded", marks=not_yet("folded texts are texts")),
        pytest.param(
            PLAIN.replace(" some/model", "\n- some/model"), id="a list", marks=not_yet("a list of one base is a base")
        ),
        pytest.param(
            f"{PLAIN}# Config\nbase_model: other/model\ninstance_prompt: a photo of xyz bird\n",
            id="an example in the body",
            marks=not_yet("the body is no front matter"),
        ),
    ],
)
def test_a_card_s_front_matter(tmp_path: Path, card: str) -> None:
    down, up = factors()
    tensors = {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}
    file = saved(tmp_path / "run" / "pytorch_lora_weights.safetensors", tensors)
    (file.parent / "README.md").write_text(card)
    found = inspect(file.parent)
    assert (found.trigger, found.base) == ("sks dog", "some/model")


# New words beside a LoRA, in files of their own: huggingface/diffusers #8794, #5733, #5883; replicate's embeddings.pti.


def emb(folder: Path) -> None:
    save_file({"clip_l": torch.randn(2, 160)}, folder / "run_emb.safetensors")
    (folder / "README.md").write_text("---\nbase_model: some/model\ninstance_prompt: a photo of <s0><s1> cat\n---\n")


def learned_embeds(folder: Path) -> None:
    torch.save({"<sks>": torch.randn(160)}, folder / "learned_embeds.bin")


def pti(folder: Path) -> None:
    torch.save({"text_encoders_0": torch.randn(2, 160)}, folder / "embeddings.pti")


@not_yet("words beside a LoRA are applied, or it is refused")
@pytest.mark.parametrize("write", [emb, learned_embeds, pti])
def test_words_beside_a_lora(tmp_path: Path, write: Callable[[Path], None]) -> None:
    down, up = factors()
    tensors = {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}
    saved(tmp_path / "pytorch_lora_weights.safetensors", tensors)
    write(tmp_path)
    try:
        base, _ = customized(inspect(tmp_path), TOYBOX, "cpu")
        assert len(base.tokenizer) > len(load_base(TOYBOX, "cpu").tokenizer)
    except UserError:
        pass


# LoRAs on a UNet's first and last layers: huggingface/diffusers #14005, Nerogar/OneTrainer #1544.


@pytest.mark.parametrize("path", ["conv_in", "conv_out", "time_embedding.linear_1"])
def test_a_unet_s_first_and_last_layers_are_applied_to(tmp_path: Path, path: str) -> None:
    base, _ = customized(inspect(with_layer(tmp_path, path)), TOYBOX, "cpu")
    down, up = factors_of(path)
    moved = base.network.get_parameter(f"{path}.weight") - parameter(path)
    torch.testing.assert_close(moved, (up.flatten(1) @ down.flatten(1)).reshape(moved.shape), rtol=0, atol=1e-6)


@not_yet("they are the UNet's, and called so")
@pytest.mark.parametrize("path", ["conv_in", "conv_out", "time_embedding.linear_1"])
def test_a_unet_s_first_and_last_layers_are_called_so(tmp_path: Path, path: str) -> None:
    assert inspect(with_layer(tmp_path, path)).touches == "2 layers of the UNet"


def parameter(path: str) -> Tensor:
    return load_base(TOYBOX, "cpu").network.get_parameter(f"{path}.weight").detach()


def factors_of(path: str, rank: int = 2) -> tuple[Tensor, Tensor]:
    """Of a linear layer or of a convolution."""
    shape = parameter(path).shape
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(rank, *shape[1:], generator=generator) / 10
    return down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) / 10


def with_layer(folder: Path, path: str) -> Path:
    named = {f"lora_unet_{path.replace('.', '_')}": factors_of(path), KOHYA_LAYER: factors()}
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in named.items():
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    return saved(folder / "kohya.safetensors", tensors)


# Precisions, alphas and a rank for each layer: huggingface/diffusers #10512, Comfy-Org/ComfyUI #1144, #2961.


@pytest.mark.parametrize(
    ("dtype", "rank", "alpha"),
    [
        (torch.float8_e4m3fn, 4, torch.tensor(1.0, dtype=torch.bfloat16)),
        (torch.float16, 2, torch.tensor(1)),
        (torch.bfloat16, 3, None),
    ],
)
def test_precisions_ranks_and_alphas(tmp_path: Path, dtype: torch.dtype, rank: int, alpha: Tensor | None) -> None:
    down, up = (tensor.to(dtype) for tensor in factors(rank))
    tensors = {f"{KOHYA_LAYER}.lora_down.weight": down, f"{KOHYA_LAYER}.lora_up.weight": up}
    if alpha is not None:
        tensors[f"{KOHYA_LAYER}.alpha"] = alpha
    base, _ = customized(inspect(saved(tmp_path / "kohya.safetensors", tensors)), TOYBOX, "cpu")
    share = 1.0 if alpha is None else float(alpha) / rank
    expected = weight() + share * up.float() @ down.float()
    torch.testing.assert_close(base.network.get_parameter(f"{LAYER}.weight"), expected, rtol=0, atol=1e-6)
