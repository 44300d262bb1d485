"""Concepts beside what else people put into a pipeline: in each case prompts without a concept stay what they were."""

import gc
from functools import partial
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from diffusers import ControlNetModel, StableDiffusionPAGPipeline, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from test_families import difference, random_adapter
from test_pipeline import drawn, image, parts
from tiny_families import tiny
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from infusion.base import Base
from infusion.errors import UserError
from infusion.generation.diffusers_pipeline import customize
from infusion.methods.lora import LoRA


def beside(pipeline, adapter, atol=0.0, **kwargs):
    """A concept acts, and its neighbour in the batch is what it is without."""
    plain = drawn(pipeline, ["a cat", "a dog"], 1, 2, **kwargs)
    images = drawn(customize(pipeline, adapter), ["a <my-cat>", "a dog"], 1, 2, **kwargs)
    assert difference(images[1], plain[1]) <= atol
    assert difference(images[0], plain[0]) > 1e-3


def test_a_peft_lora(pipe, adapter):
    config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    pipe.unet.add_adapter(config, adapter_name="style")
    beside(pipe, adapter)
    pipe.set_adapters("style", 0.5)
    beside(pipe, adapter)


def test_perturbed_attention_guidance(pipe, adapter):
    pag = StableDiffusionPAGPipeline(**parts(pipe), pag_applied_layers=["mid"])
    pag.set_progress_bar_config(disable=True)
    beside(pag, adapter, pag_scale=3.0)
    beside(pag, adapter, pag_scale=3.0, guidance_scale=1.0)


def test_freeu(pipe, adapter):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    beside(pipe, adapter)


@pytest.mark.slow
def test_compiled(pipe, adapter):
    expected = drawn(customize(pipe, adapter), ["a <my-cat>", "a dog"], 1, 2)
    plain = drawn(pipe, ["a cat", "a dog"], 1, 2)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    images = drawn(customize(pipe, adapter), ["a <my-cat>", "a dog"], 1, 2)
    assert difference(images, expected) < 1e-4
    assert difference(drawn(pipe, ["a cat", "a dog"], 1, 2), plain) < 1e-4


def test_an_ip_adapter(pipe, adapter):
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = CLIPVisionModelWithProjection(config).eval()
    pipe.register_modules(image_encoder=encoder, feature_extractor=CLIPImageProcessor(size=16, crop_size=16))
    pipe.load_ip_adapter(ip_adapter_weights(pipe.unet), subfolder=None, weight_name=None, image_encoder_folder=None)
    beside(pipe, adapter, ip_adapter_image=[image()])


def ip_adapter_weights(unet: UNet2DConditionModel):
    """Random weights under the names that the loader knows."""
    width, tokens, layers = unet.config.cross_attention_dim, 4, {}
    number = 1
    for path in unet.attn_processors:
        if path.endswith("attn2.processor"):
            out = dict(unet.named_modules())[path.removesuffix(".processor")].to_v.out_features
            layers[f"{number}.to_k_ip.weight"] = torch.randn(out, width) * 0.3
            layers[f"{number}.to_v_ip.weight"] = torch.randn(out, width) * 0.3
            number += 2
    projection = {
        "proj.weight": torch.randn(tokens * width, 16) * 0.3,
        "proj.bias": torch.zeros(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def test_a_textual_inversion_embedding(pipe, adapter):
    pipe.load_textual_inversion({"<style>": torch.randn(16)}, token="<style>")
    plain = drawn(pipe, ["a cat of <style>", "a dog"], 1, 2)
    images = drawn(customize(pipe, adapter), ["a <my-cat> of <style>", "a <style> dog"], 1, 2)
    assert difference(images[0], plain[0]) > 1e-3
    assert np.array_equal(images[1], drawn(pipe, ["a cat", "a <style> dog"], 1, 2)[1])


def test_prompt_embeddings_beside_the_text(pipe, adapter):
    text = ["a <my-cat>", "a dog"]
    embeds, negative = pipe.encode_prompt(["a cat", "a dog"], "cpu", 1, True)
    images = drawn(customize(pipe, adapter), text, 1, 2, prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert np.array_equal(images, drawn(customize(pipe, adapter), text, 1, 2))
    twice = drawn(customize(pipe, adapter), text, 1, 2, prompt_embeds=2 * embeds, negative_prompt_embeds=negative)
    assert difference(twice, images) > 1e-3


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_without_guidance(pipe, adapter, guidance_scale):
    beside(pipe, adapter, guidance_scale=guidance_scale)


# --- every family's other pipelines ---


def trained(part):
    """A ControlNet begins with zeros, and would do nothing."""
    torch.manual_seed(3)
    for parameter in part.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.3)
    return part.eval()


def control_xl(pipeline):
    small = {"conditioning_embedding_out_channels": (8, 16)}
    return {"controlnet": trained(ControlNetModel.from_unet(pipeline.unet, **small))}


def control_sd3(pipeline, extra=0):
    kind, sizes = diffusers.SD3ControlNetModel, {"num_layers": 1, "num_extra_conditioning_channels": extra}
    return {"controlnet": trained(kind.from_transformer(pipeline.transformer, **sizes))}


def control_flux(pipeline):
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    return {"controlnet": trained(diffusers.FluxControlNetModel.from_transformer(pipeline.transformer, **sizes))}


def control_sana(pipeline):
    return {"controlnet": trained(diffusers.SanaControlNetModel.from_config(pipeline.transformer.config))}


def wider_flux(in_channels):
    """A network that is told images beside the latents."""
    return lambda pipeline: {
        "transformer": diffusers.FluxTransformer2DModel.from_config(
            pipeline.transformer.config, in_channels=in_channels, out_channels=16
        ).eval()
    }


def perturbed(layer):
    return lambda pipeline: {"pag_applied_layers": [layer]}


def sprint(pipeline):
    config = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    transformer = diffusers.SanaTransformer2DModel.from_config(pipeline.transformer.config, **config).eval()
    return {"transformer": transformer, "scheduler": diffusers.SCMScheduler()}


PICTURE = Image.new("RGB", (16, 16), "red")
FROM = {"image": [PICTURE] * 2, "strength": 0.9}
INSIDE = {"image": [PICTURE] * 2, "mask_image": [Image.new("L", (16, 16), 255)] * 2, "strength": 1.0}
CONTROL = {"control_image": [PICTURE] * 2}
AS_IT_IS = {"use_resolution_binning": False}
OTHER_PIPELINES = [
    ("sdxl", "StableDiffusionXLImg2ImgPipeline", None, FROM),
    ("sdxl", "StableDiffusionXLInpaintPipeline", None, INSIDE),
    ("sdxl", "StableDiffusionXLControlNetPipeline", control_xl, {"image": [PICTURE] * 2}),
    ("sdxl", "StableDiffusionXLControlNetPipeline", control_xl, {"image": [PICTURE] * 2, "guess_mode": True}),
    ("sdxl", "StableDiffusionXLControlNetImg2ImgPipeline", control_xl, FROM | CONTROL),
    ("sdxl", "StableDiffusionXLControlNetInpaintPipeline", control_xl, INSIDE | CONTROL),
    ("sdxl", "StableDiffusionXLPAGPipeline", perturbed("mid"), {"pag_scale": 3.0}),
    ("sd-3", "StableDiffusion3Img2ImgPipeline", None, FROM),
    ("sd-3", "StableDiffusion3InpaintPipeline", None, INSIDE),
    ("sd-3", "StableDiffusion3ControlNetPipeline", control_sd3, CONTROL),
    (
        "sd-3",
        "StableDiffusion3ControlNetInpaintingPipeline",
        partial(control_sd3, extra=1),
        CONTROL | {"control_mask": INSIDE["mask_image"]},
    ),
    ("flux", "FluxImg2ImgPipeline", None, FROM),
    ("flux", "FluxInpaintPipeline", None, INSIDE),
    ("flux", "FluxControlNetPipeline", control_flux, CONTROL),
    ("flux", "FluxControlNetImg2ImgPipeline", control_flux, FROM | CONTROL),
    ("flux", "FluxControlNetInpaintPipeline", control_flux, INSIDE | CONTROL),
    ("flux", "FluxControlPipeline", wider_flux(32), CONTROL),
    ("flux", "FluxControlImg2ImgPipeline", wider_flux(32), FROM | CONTROL),
    ("flux", "FluxFillPipeline", wider_flux(48), {name: INSIDE[name] for name in ("image", "mask_image")}),
    ("flux", "FluxKontextPipeline", None, {"image": PICTURE, "max_area": 16 * 16, "_auto_resize": False}),
    ("pixart-sigma", "PixArtSigmaPAGPipeline", perturbed("blocks.1"), {"pag_scale": 3.0} | AS_IT_IS),
    ("sana", "SanaPAGPipeline", perturbed("transformer_blocks.1"), {"pag_scale": 3.0} | AS_IT_IS),
    ("sana", "SanaControlNetPipeline", control_sana, CONTROL | AS_IT_IS),
    ("sana", "SanaSprintPipeline", sprint, {"num_inference_steps": 2} | AS_IT_IS),
    ("sana", "SanaSprintImg2ImgPipeline", sprint, {"num_inference_steps": 2} | FROM | AS_IT_IS),
]


def other_pipeline(name, kind, parts):
    plain = tiny(name)
    pipeline = getattr(diffusers, kind).from_pipe(plain, **(parts(plain) if parts else {}))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by(pipeline, prompts, **kwargs):
    torch.manual_seed(0)  # some pipelines draw the latents of control images without a generator
    size = 32 if "Sana" in type(getattr(pipeline, "pipeline", pipeline)).__name__ else 16
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    settings = {"num_inference_steps": 3, "output_type": "np", "height": size, "width": size} | kwargs
    return pipeline(prompt=prompts, generator=generators, **settings).images


@pytest.mark.parametrize(
    ("name", "kind", "parts", "kwargs"), OTHER_PIPELINES, ids=[case[1] for case in OTHER_PIPELINES]
)
def test_other_pipelines(name, kind, parts, kwargs, concept):
    pipeline = other_pipeline(name, kind, parts)
    adapter = random_adapter(Base.from_pipeline(pipeline), concept, std=5.0)
    plain = drawn_by(pipeline, ["a cat", "a dog"], **kwargs)
    images = drawn_by(customize(pipeline, adapter), ["a <my-cat>", "a dog"], **kwargs)
    assert np.array_equal(images[1], plain[1]) and difference(images[0], plain[0]) > 5e-5


def test_perturbed_joint_attention_is_refused_where_a_concept_is_named(concept):
    pipeline = other_pipeline("sd-3", "StableDiffusion3PAGPipeline", perturbed("blocks.1"))
    wrapped = customize(pipeline, random_adapter(Base.from_pipeline(pipeline), concept))
    with pytest.raises(UserError, match="pag_scale=0"):
        drawn_by(wrapped, ["a <my-cat>", "a dog"])
    assert np.array_equal(drawn_by(wrapped, ["a cat", "a dog"]), drawn_by(pipeline, ["a cat", "a dog"]))
    assert len(drawn_by(wrapped, ["a <my-cat>", "a dog"], pag_scale=0)) == 2


@pytest.mark.parametrize("name", ["sd-1", "sdxl", "sd-3", "flux", "pixart-sigma", "sana"])
@pytest.mark.slow
def test_hooks_that_move_and_cast_weights(name, concept):
    """As far as a processor can show: whatever moves weights about the network's calls, the images are the same."""
    pipeline = tiny(name)
    adapter = random_adapter(Base.from_pipeline(pipeline), concept, std=5.0)
    kwargs = AS_IT_IS if name in ("pixart-sigma", "sana") else {}
    expected = drawn_by(customize(pipeline, adapter), ["a <my-cat>", "a dog"], **kwargs)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(drawn_by(customize(pipeline, adapter), ["a <my-cat>", "a dog"], **kwargs), expected)
    pipeline.remove_all_hooks()
    network = Base.from_pipeline(pipeline).network
    network.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    assert np.array_equal(drawn_by(customize(pipeline, adapter), ["a <my-cat>", "a dog"], **kwargs), expected)
    pipeline = tiny(name)
    Base.from_pipeline(pipeline).network.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    plain = drawn_by(pipeline, ["a cat", "a dog"], **kwargs)
    images = drawn_by(customize(pipeline, adapter), ["a <my-cat>", "a dog"], **kwargs)
    assert np.array_equal(images[1], plain[1]) and difference(images[0], plain[0]) > 1e-4


# --- what cannot work ---


def test_different_prompts_for_two_text_models_are_refused(concept):
    pipeline = tiny("sdxl")
    adapter = random_adapter(Base.from_pipeline(pipeline), concept)
    with pytest.raises(UserError, match="prompt_2 differs"):
        drawn(customize(pipeline, adapter), "a <my-cat>", 1, prompt_2="a dog")


def test_a_negative_prompt_that_reads_the_same_is_refused(pipe, adapter):
    with pytest.raises(UserError, match="reads the same"):
        drawn(customize(pipe, adapter), "a <my-cat>", 1, negative_prompt="a cat")


# --- diffusers' verbs ---


def test_several_concepts_loaded_weighted_and_unloaded(pipe, base, concept, adapter):
    from dataclasses import replace

    wrapped = customize(pipe)
    wrapped.load_infusion(adapter)
    dog = random_adapter(base, replace(concept, name="my-dog", class_noun="dog"))
    wrapped.load_infusion(dog)
    assert wrapped.get_list_infusion_adapters() == ["my-cat", "my-dog"] == wrapped.get_active_infusion_adapters()
    both = drawn(wrapped, "a <my-cat> and a <my-dog>", 1)
    wrapped.set_infusion_adapters("my-cat")
    assert wrapped.get_active_infusion_adapters() == ["my-cat"]
    assert np.array_equal(drawn(wrapped, "a <my-cat>", 1), drawn(customize(pipe, adapter), "a <my-cat>", 1))
    one = drawn(wrapped, "a <my-cat> and a <my-dog>", 1)
    assert difference(one, both) > 1e-3
    wrapped.delete_infusion_adapters("my-dog")
    with pytest.raises(UserError, match="my-dog"):
        drawn(wrapped, "a <my-dog>", 1)
    wrapped.unload_infusion()
    assert wrapped.get_list_infusion_adapters() == []
    assert np.array_equal(drawn(wrapped, "a cat", 1), drawn(pipe, "a cat", 1))


def test_a_weight_of_zero_is_the_base_to_the_bit_and_others_lie_between(pipe, adapter):
    wrapped = customize(pipe, adapter)
    plain, full = drawn(pipe, "a cat", 1), drawn(wrapped, "a <my-cat>", 1)
    wrapped.set_infusion_adapters("my-cat", 0.0)
    assert np.array_equal(drawn(wrapped, "a <my-cat>", 1), plain)
    moved = []
    for weight in (0.1, 0.3):
        wrapped.set_infusion_adapters(["my-cat"], [weight])
        moved.append(difference(drawn(wrapped, "a <my-cat>", 1), plain))
    assert 0 < moved[0] < moved[1] < 1.1 * difference(full, plain)
    wrapped.set_infusion_adapters("my-cat", 1.0)
    assert np.array_equal(drawn(wrapped, "a <my-cat>", 1), full)


def test_names_and_weights_are_checked(pipe, base, concept, adapter):
    wrapped = customize(pipe, adapter)
    with pytest.raises(UserError, match=r'No concept "my-cats" is loaded; loaded are: my-cat\. Did you mean "my-cat"'):
        wrapped.set_infusion_adapters("my-cats")
    with pytest.raises(UserError, match="1 adapters need as many weights, and 2 were given"):
        wrapped.set_infusion_adapters(["my-cat"], [1.0, 2.0])
    with pytest.raises(UserError, match="share a name"):
        wrapped.load_infusion(adapter)
    lora = customize(pipe, LoRA(rank=2).adapter(base, concept).eval())
    with pytest.raises(UserError, match=r"weight of 0\.5"):
        lora.set_infusion_adapters("my-cat", 0.5)


def test_what_is_set_on_it_is_set_on_the_pipeline(pipe, adapter):
    wrapped = customize(pipe, adapter)
    assert wrapped.unet is pipe.unet
    wrapped.scheduler = scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, steps_offset=0)
    assert pipe.scheduler is scheduler


@pytest.mark.slow
def test_ten_concepts_a_hundred_times_leave_no_trace(pipe, base, concept):
    from dataclasses import replace

    def state():
        modules = [module for part in (pipe.unet, pipe.text_encoder, pipe.vae) for module in part.modules()]
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
        return hooks, sorted(vars(pipe.unet)), sorted(vars(pipe)), Base.from_pipeline(pipe).digest()

    drawn(pipe, "a cat", 1, num_inference_steps=1)  # the first call leaves the pipeline's own notes on it
    before = state()
    concepts = [random_adapter(base, replace(concept, name=f"cat-{n}")) for n in range(10)]
    wrapped = customize(pipe)
    in_memory = num_tensors()
    for _ in range(100):
        for one in concepts:
            wrapped.load_infusion(one)
        wrapped.unload_infusion()
    for one in concepts:
        wrapped.load_infusion(one)
    drawn(wrapped, "a <cat-0> and a <cat-9>", 1, num_inference_steps=1)
    wrapped.unload_infusion()
    assert state() == before and num_tensors() == in_memory
    assert tiny_tokenizer().get_vocab() == pipe.tokenizer.get_vocab()


def test_moving_it_keeps_the_concepts(pipe, adapter):
    wrapped = customize(pipe, adapter)
    assert wrapped.to("cpu") is wrapped and wrapped.get_active_infusion_adapters() == ["my-cat"]


def test_one_adapter_under_two_names(pipe, adapter):
    wrapped = customize(pipe)
    wrapped.load_infusion(adapter, "one")
    wrapped.load_infusion(adapter, "two")
    assert adapter.concept_name == "my-cat"
    assert difference(drawn(wrapped, "a <one> and a <two>", 1), drawn(pipe, "a cat and a cat", 1)) > 1e-3


def test_pipelines_with_a_way_of_their_own_to_encode_are_refused(pipe, adapter):
    wrapped = customize(pipe, adapter)
    original = type(pipe).encode_prompt
    kind: Any = type(pipe)

    class Own(kind):
        def __call__(self, prompt, **kwargs):
            states, _ = original(self, prompt, "cpu", 1, False)
            return self.unet(torch.zeros(1, 4, 8, 8), 1, encoder_hidden_states=states)

    pipe.__class__ = Own
    with pytest.raises(UserError, match="a way of its own to encode"):
        wrapped("a <my-cat>")


def test_a_call_that_changes_what_was_encoded_is_not_passed_over(pipe, adapter):
    wrapped = customize(pipe, adapter)

    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"encoder_hidden_states": 2 * kwargs["encoder_hidden_states"]}),
        with_kwargs=True,
    )
    with pytest.raises(UserError, match="the concept did not act"):
        drawn(wrapped, "a <my-cat>", 1)


def test_arguments_that_a_pipeline_collects_reach_it(pipe, adapter):
    seen = []
    kwargs = {"callback": lambda step, timestep, latents: seen.append(step), "callback_steps": 1}
    drawn(customize(pipe, adapter), "a <my-cat>", 1, num_inference_steps=2, **kwargs)
    assert len(seen) == 2


def test_calls_without_a_concept_are_the_pipelines_own(pipe, concept):
    embeds, negative = pipe.encode_prompt("a cat", "cpu", 1, True)
    told = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    assert np.array_equal(drawn(customize(pipe), None, 1, **told), drawn(pipe, "a cat", 1))
    pipeline = tiny("sdxl")
    wrapped = customize(pipeline, random_adapter(Base.from_pipeline(pipeline), concept))
    assert np.array_equal(drawn(wrapped, "a cat", 1, prompt_2="a dog"), drawn(pipeline, "a cat", 1, prompt_2="a dog"))


def test_prompts_that_would_be_rewritten_are_refused(concept):
    pipeline = tiny("pixart-sigma")
    wrapped = customize(pipeline, random_adapter(Base.from_pipeline(pipeline), concept))
    with pytest.raises(UserError, match="clean_caption"):
        wrapped("a <my-cat>", clean_caption=True)


def num_tensors():
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
