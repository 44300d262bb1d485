from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image

from infusion.base import Base, attached
from infusion.errors import UserError
from infusion.generation.diffusers_pipeline import customize
from infusion.generation.pipeline import generate, sample_prompts
from infusion.methods.adapter_file import load_adapter, save_adapter
from infusion.methods.infusion import Infusion
from infusion.methods.textual_inversion import TextualInversion
from infusion.methods.xti import ExtendedTextualInversion


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def drawn(pipeline, prompt, *seeds, **kwargs):
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "np"} | kwargs
    return pipeline(prompt, generator=generators(*seeds), **settings).images


def difference(a, b):
    return np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).max()


def test_prompts_without_the_concept_are_the_pipelines_to_the_bit(pipe, adapter):
    prompts = ["a cat", "a dog"]
    assert np.array_equal(drawn(customize(pipe, adapter), prompts, 3, 4), drawn(pipe, prompts, 3, 4))


def test_in_a_mixed_list_the_other_prompts_are_untouched_to_the_bit(pipe, adapter):
    expected = drawn(pipe, ["a cat", "a cat", "a dog"], 1, 2, 3)
    images = drawn(customize(pipe, adapter), ["a cat", "a <my-cat>", "a dog"], 1, 2, 3)
    assert np.array_equal(images[[0, 2]], expected[[0, 2]])
    assert difference(images[1], expected[1]) > 1e-3


def test_in_our_sampler_pictures_without_the_concept_are_the_bases_to_the_bit(base, adapter):
    settings: dict[str, Any] = {"seeds": (0, 1), "num_inference_steps": 3}
    expected = generate(base, ["a cat", "a dog"], **settings)
    images = generate(base, ["a cat", "a <my-cat>"], [adapter], **settings)
    assert [difference(a, b) for a, b in zip(images, expected, strict=True)][:2] == [0, 0]


@pytest.mark.parametrize("scheduler", [None, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_pipeline_and_our_sampler_draw_the_same_picture(pipe, adapter, scheduler, guidance_scale):
    if scheduler:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    settings = {"num_inference_steps": 4, "guidance_scale": guidance_scale}
    theirs = drawn(customize(pipe, adapter), ["a <my-cat>", "a dog"], 5, 5, output_type="pil", **settings)
    ours = generate(Base.from_pipeline(pipe), ["a <my-cat>", "a dog"], [adapter], seeds=(5,), **settings)
    assert max(difference(a, b) for a, b in zip(ours, theirs, strict=True)) <= 1


def test_images_per_prompt_and_negative_prompts(pipe, adapter):
    wrapped = customize(pipe, adapter)
    four = drawn(wrapped, ["a <my-cat>", "a dog"], 1, 2, 3, 4, num_images_per_prompt=2, negative_prompt=["dog", "cat"])
    plain = drawn(pipe, ["a cat", "a dog"], 1, 2, 3, 4, num_images_per_prompt=2, negative_prompt=["dog", "cat"])
    second = drawn(wrapped, "a <my-cat>", 2, negative_prompt="dog")
    assert difference(four[1], second[0]) < 1e-4
    assert difference(four[1], plain[1]) > 1e-3
    assert np.array_equal(four[2:], plain[2:])


def test_every_prompt_may_have_seeds_of_its_own(base):
    prompts = ["a do te", "a ca"]
    batches = sample_prompts(base, prompts, seeds=[[3], [5, 4]], num_inference_steps=2, batch_size=2)
    both = sample_prompts(base, prompts, seeds=[3, 4, 5], num_inference_steps=2, batch_size=6)
    torch.testing.assert_close(torch.cat(list(batches)), torch.cat(list(both))[[0, 5, 4]], atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="2 prompts and lists of seeds for 1"):
        next(sample_prompts(base, prompts, seeds=[[3]], num_inference_steps=2))


def test_pictures_may_be_drawn_in_turn(base, adapter):
    settings: dict[str, Any] = {"seeds": (0, 1), "num_inference_steps": 2, "batch_size": 1}
    first, second = (sample_prompts(base, prompt, [adapter], **settings) for prompt in ("a <my-cat>", "a dog"))
    in_turn = [latents for pair in zip(first, second, strict=True) for latents in pair]
    alone = list(sample_prompts(base, "a <my-cat>", [adapter], **settings))
    assert all(torch.equal(a, b) for a, b in zip(in_turn[::2], alone, strict=True))


def test_negative_prompts_may_name_concepts_and_mean_the_class(pipe, base, adapter):
    drawn_with = [drawn(customize(pipe, adapter), "a dog", 1, negative_prompt=text) for text in ("a <my-cat>", "a cat")]
    assert np.array_equal(*drawn_with)
    ours = [
        generate(base, "a dog", [adapter], negative_prompt=text, num_inference_steps=2) for text in ("<my-cat>", "cat")
    ]
    assert difference(ours[0][0], ours[1][0]) == 0


def test_three_rows_per_guided_picture_with_a_concept_and_two_without(pipe, adapter):
    rows = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    drawn(customize(pipe, adapter), ["a <my-cat>", "a dog"], 1, 2, num_inference_steps=1)
    assert sum(rows) == 3 + 2
    rows.clear()
    drawn(customize(pipe, adapter), ["a cat", "a dog"], 1, 2, num_inference_steps=1)
    assert rows == [4]
    handle.remove()


def test_no_trace_after_a_call(pipe, adapter):
    def state():
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())
        return (
            hooks,
            "forward" in vars(pipe.unet),
            len(pipe.tokenizer),
            Base.from_pipeline(pipe).fingerprint(),
        )

    before = state()
    drawn(customize(pipe, adapter), "a <my-cat>", 1)
    assert state() == before
    with pytest.raises(UserError):
        drawn(customize(pipe, adapter), "a <your-cat>", 1)
    assert state() == before


def image(size=16):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8))


def parts(pipe):
    return {**pipe.components, "requires_safety_checker": False}


def check(pipeline, adapter, **kwargs):
    pipeline.set_progress_bar_config(disable=True)
    plain = drawn(pipeline, ["a cat", "a dog"], 1, 2, **kwargs)
    images = drawn(customize(pipeline, adapter), ["a <my-cat>", "a dog"], 1, 2, **kwargs)
    assert np.array_equal(images[1], plain[1])
    assert difference(images[0], plain[0]) > 1e-3


def test_img2img(pipe, adapter):
    check(StableDiffusionImg2ImgPipeline(**parts(pipe)), adapter, image=[image()] * 2, strength=0.9)


def test_inpaint(pipe, adapter):
    mask = Image.new("L", (16, 16), 255)
    pipeline = StableDiffusionInpaintPipeline(**parts(pipe))
    check(pipeline, adapter, image=[image()] * 2, mask_image=[mask] * 2, height=16, width=16, strength=1.0)


def test_controlnet(pipe, adapter):
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16))
    for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.1)
    pipeline = StableDiffusionControlNetPipeline(**parts(pipe), controlnet=controlnet)
    check(pipeline, adapter, image=[image(), image()])
    check(pipeline, adapter, image=[image(), image()], guess_mode=True)


def test_what_the_network_takes_out_of_its_inputs_reaches_both_streams(pipe, base, concept):
    """A T2I-Adapter's features come as a list that the network empties while it runs."""
    silent = Infusion().adapter(base, concept)
    features = [torch.randn(1, 16, 8, 8), torch.randn(1, 32, 4, 4)]
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor(10), base.encode(["a cat"]).text_states)
    with torch.no_grad():
        expected = base.network(*inputs, down_intrablock_additional_residuals=list(features)).sample
        with attached(base, [silent]) as denoiser:
            assert denoiser.streams
            denoiser.streams.rows = base.encode(["a <my-cat>"], {"my-cat": "cat"}).concept_tokens
            changed = base.network(*inputs, down_intrablock_additional_residuals=list(features)).sample
    assert torch.equal(changed, expected)


def test_adapters_come_as_files_too(pipe, base, adapter, tmp_path):
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    from_file = drawn(customize(pipe, tmp_path / "my-cat.safetensors"), "a <my-cat>", 1)
    assert np.array_equal(from_file, drawn(customize(pipe, adapter), "a <my-cat>", 1))


def test_unsupported_ways_to_call_are_refused(pipe, adapter):
    with pytest.raises(UserError, match="as text"):
        customize(pipe, adapter)(None, prompt_embeds=torch.zeros(1, 32, 16))
    with pytest.raises(UserError, match="share a name"):
        drawn(customize(pipe, adapter, adapter), "a <my-cat>", 1)


def test_steps_do_not_walk_the_network_to_ask_its_precision(base, monkeypatch):
    """diffusers' `dtype` goes through every module and parameter, which takes as long as a layer does."""
    asked = []

    def dtype(network):
        asked.append(network)
        return torch.float32

    monkeypatch.setattr(type(base.network), "dtype", property(dtype))
    counts = []
    for steps in (2, 5):
        generate(base, "a cat", num_inference_steps=steps)
        counts.append(len(asked))
        asked.clear()
    assert counts[0] == counts[1]


def test_a_renamed_textual_inversion_is_saved_and_read(pipe, base, concept, tmp_path):
    adapter = TextualInversion().adapter(base, concept)
    customized = customize(pipe)
    customized.load_infusion(adapter, adapter_name="new")
    save_adapter(customized.adapters["new"], tmp_path / "new.safetensors", base)
    assert load_adapter(tmp_path / "new.safetensors", base).concept_name == "new"


def test_what_does_not_go_together_is_refused_when_it_is_loaded(pipe, base, adapter, concept):
    customized = customize(pipe, adapter)
    with pytest.raises(UserError, match="do not go together"):
        customized.load_infusion(ExtendedTextualInversion().adapter(base, concept), adapter_name="new")
    assert customized.get_list_infusion_adapters() == ["my-cat"]


def test_without_a_text_model_words_of_their_own_are_refused(pipe, base, concept):
    adapter = TextualInversion().adapter(base, concept)
    pipe.text_encoder = None
    with pytest.raises(UserError, match="no text model"):
        customize(pipe, adapter)
