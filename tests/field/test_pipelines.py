"""Pipelines as people set them up: precisions, attention processors, long prompts, schedulers, callbacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from PIL import Image
from tiny_families import tiny

from infusion.base import Base
from infusion.concepts.concept import Concept
from infusion.errors import UserError
from infusion.generation.diffusers_pipeline import customize
from infusion.methods.adapter import Adapter
from infusion.methods.adapter_file import save_adapter
from infusion.methods.infusion import Infusion

STEPS = {"num_inference_steps": 3}


def adapter_for(pipeline: Any) -> Adapter:
    """An adapter of random residuals."""
    concept = Concept("my-cat", "cat", (Image.new("RGB", (64, 64)),), (None,), (None,), ("1.png",))
    adapter = Infusion().adapter(Base.from_pipeline(pipeline), concept)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    return adapter.eval()


def generators(num: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(num)]


def drawn(pipeline: Any, prompts: list[str], **settings: Any) -> np.ndarray:
    num = len(prompts) * settings.get("num_images_per_prompt", 1)
    return np.asarray(pipeline(prompts, generator=generators(num), output_type="np", **STEPS | settings).images)


def assert_acts_alone(pipeline: Any, **settings: Any) -> None:
    """The concept acts in its own rows, and the other rows are to the bit what they were."""
    plain = drawn(pipeline, ["a cat", "a dog"], **settings)
    own = len(plain) // 2
    found = drawn(customize(pipeline, adapter_for(pipeline)), ["a <my-cat>", "a dog"], **settings)
    assert np.abs(found[:own] - plain[:own]).max() > 1e-4
    assert np.array_equal(found[own:], plain[own:])


# huggingface/diffusers #10085, #10455: skip_guidance_layers with several images a prompt on SD 3.


@pytest.mark.parametrize("copies", [1, 2])
def test_skip_layer_guidance_on_sd_3(copies: int) -> None:
    skipped = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    size = {"height": 16, "width": 16}
    assert_acts_alone(tiny("sd-3"), guidance_scale=4.0, num_images_per_prompt=copies, **skipped, **size)


# huggingface/diffusers #7263, #1405, #7519: attention processors, and their scale.


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda pipe: pipe.enable_attention_slicing(), id="slicing"),
        pytest.param(lambda pipe: pipe.enable_attention_slicing(1), id="slices of one"),
        pytest.param(lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()), id="AttnProcessor"),
        pytest.param(lambda pipe: pipe.unet.enable_gradient_checkpointing(), id="gradient checkpointing"),
    ],
)
def test_attention_processors(change: Callable[[Any], None]) -> None:
    pipeline = tiny("sd-1")
    change(pipeline)
    assert_acts_alone(pipeline)


def test_a_scale_for_attention_processors() -> None:
    assert_acts_alone(tiny("sd-1"), cross_attention_kwargs={"scale": 0.5})


# huggingface/diffusers #2136, damian0815/compel #79 and #45: prompts beyond the window.


def test_embeddings_of_two_windows() -> None:
    pipeline = tiny("sd-1")
    customized = customize(pipeline, adapter_for(pipeline))

    def windows(*texts: str) -> torch.Tensor:
        return torch.cat([pipeline.encode_prompt(text, "cpu", 1, False)[0] for text in texts], dim=1)

    given = {"prompt_embeds": windows("a cat", "on a beach"), "negative_prompt_embeds": windows("", "")}
    settings = {**STEPS, "output_type": "np", **given}
    found = customized("a <my-cat> on a beach", generator=generators(1), **settings).images
    plain = pipeline(generator=generators(1), **settings).images
    assert np.abs(found - plain).max() > 1e-4


def test_a_concept_beyond_the_window_is_refused() -> None:
    pipeline = tiny("sd-1")
    with pytest.raises(UserError, match="shorten the prompt"):
        customize(pipeline, adapter_for(pipeline))("very " * 30 + "<my-cat>", num_inference_steps=1)


# huggingface/diffusers #3212 and its documentation: schedulers and callbacks.


@pytest.mark.parametrize(
    "name",
    ["HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LCMScheduler", "UniPCMultistepScheduler"],
)
def test_schedulers(name: str) -> None:
    pipeline = tiny("sd-1")
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    assert_acts_alone(pipeline)


def test_guidance_that_ends_half_way() -> None:
    def end(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[-1]
        return given

    called = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert_acts_alone(tiny("sd-1"), num_inference_steps=4, **called)


def test_an_interrupted_call() -> None:
    def stop(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 1
        return given

    assert_acts_alone(tiny("sd-1"), callback_on_step_end=stop, num_inference_steps=4)


def test_three_images_a_prompt() -> None:
    assert_acts_alone(tiny("sd-1"), num_images_per_prompt=3)


# huggingface/diffusers #11648, #11215, #9514, black-forest-labs/flux #157: the base is held in eight bits, or is fused,
# and its fingerprint differs for that alone.


def cast_layerwise(pipeline: Any) -> None:
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def from_fp8(pipeline: Any) -> None:
    pipeline.unet.to(torch.float8_e4m3fn).to(torch.float32)


def fuse(pipeline: Any) -> None:
    config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(config, adapter_name="style")
    pipeline.fuse_lora(adapter_names=["style"])


@pytest.mark.xfail(strict=True, reason="read through the layer, or the likely reason is named")
@pytest.mark.parametrize("change", [cast_layerwise, from_fp8, fuse])
def test_files_on_a_base_that_is_held_otherwise(tmp_path: Path, change: Callable[[Any], None]) -> None:
    pipeline = tiny("sd-1")
    save_adapter(adapter_for(pipeline), tmp_path / "my-cat.safetensors", Base.from_pipeline(pipeline))
    change(pipeline)
    try:
        customize(pipeline, tmp_path / "my-cat.safetensors")
    except UserError as error:
        assert any(word in str(error) for word in ("precision", "fp8", "quantiz", " fused", "fuse_lora"))


# huggingface/diffusers #10621, #11752, #9514: pipelines quantized by torchao.


@pytest.mark.parametrize(
    ("name", "size"), [("sd-1", {}), ("sana", {"height": 64, "width": 64, "use_resolution_binning": False})]
)
def test_a_pipeline_quantized_by_torchao(tmp_path: Path, name: str, size: dict[str, Any]) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    pipeline = tiny(name)
    adapter = adapter_for(pipeline)
    save_adapter(adapter, tmp_path / "my-cat.safetensors", Base.from_pipeline(pipeline))
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    quantization.quantize_(network, quantization.Int8WeightOnlyConfig())
    assert drawn(pipeline, ["a cat"], **size).size
    try:
        customize(pipeline, tmp_path / "my-cat.safetensors")
        drawn(customize(pipeline, adapter), ["a <my-cat>"], **size)
    except UserError:
        pass
