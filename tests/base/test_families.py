"""Every family of models: the same images as its own pipeline, and the laws, on a tiny real one."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import PIPELINES, stable_diffusion_3, tiny

from infusion.base import Base
from infusion.base.denoising import denoising_loss
from infusion.base.noise_schedule import training_target, training_timesteps
from infusion.base.prompts import parse_prompt
from infusion.concepts.masks import attention_masks, subject_masks
from infusion.errors import UserError
from infusion.generation.diffusers_pipeline import customize
from infusion.generation.pipeline import generate, sample_prompts
from infusion.generation.sampling import few_step_scheduler
from infusion.methods.adapter_file import load_adapter, save_adapter
from infusion.methods.custom_diffusion import CustomDiffusion
from infusion.methods.dreambooth import DreamBooth
from infusion.methods.infusion import Infusion
from infusion.methods.lora import LoRA
from infusion.methods.perfusion import Perfusion
from infusion.methods.textual_inversion import TextualInversion
from infusion.methods.xti import ExtendedTextualInversion
from infusion.metrics import latent_fisher
from infusion.metrics.latent_fisher import Probe, eps_predictions, latent_fisher_divergence, stratified_timesteps
from infusion.training.dataset import training_set
from infusion.training.loop import train
from infusion.training.settings import TrainingSettings

FAMILIES = list(PIPELINES)
TRUE_GUIDANCE = [name for name in FAMILIES if not name.startswith("flux")]


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def pipeline(name):
    return tiny(name)


@pytest.fixture
def base(pipeline):
    base = Base.from_pipeline(pipeline)
    base.freeze()
    return base


def random_adapter(base, concept, std=0.5):
    adapter = Infusion().adapter(base, concept)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=std)
    return adapter.eval()


def drawn(pipeline, prompt, *seeds, **kwargs):
    plain = getattr(pipeline, "pipeline", pipeline)
    size = Base.from_pipeline(plain).size_px
    settings = {"num_inference_steps": 3, "output_type": "np", "height": size, "width": size} | kwargs
    if type(plain).__name__.startswith(("PixArt", "Sana")):
        settings["use_resolution_binning"] = False
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(prompt, generator=generators, **settings).images


def difference(a, b):
    return np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).max()


def inputs(base, prompts, adapters=()):
    words = {adapter.concept_name: adapter.words for adapter in adapters}
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(prompts), *base.latent_shape, generator=generator)
    return latents, torch.full((len(prompts),), 500), base.encode(prompts, words)


@torch.no_grad()
def predict(base, prompts, *adapters):
    with base.customized(*adapters) as denoiser:
        return denoiser.predict(*inputs(base, prompts, adapters))


def test_our_sampler_draws_what_the_stock_pipeline_draws(pipeline, base):
    guidance = 1.0 if not_guided(base) else 4.0
    theirs = drawn(pipeline, ["a cat", "a dog"], 5, 6, guidance_scale=guidance, output_type="pil")
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": guidance}
    ours = [generate(base, text, seeds=(seed,), **settings)[0] for text, seed in (("a cat", 5), ("a dog", 6))]
    assert max(difference(a, b) for a, b in zip(ours, theirs, strict=True)) <= 1


def not_guided(base):
    """FLUX.1 schnell knows no guidance."""
    return base.family.architecture == "flux-1" and not base.family.has_guidance_embedding(base.pipeline)


def test_untrained_it_is_the_base(base, concept):
    fresh = Infusion().adapter(base, concept)
    with_concept, plain = predict(base, ["a <my-cat>"], fresh), predict(base, ["a cat"])
    torch.testing.assert_close(with_concept, plain, rtol=0, atol=1e-5)


def test_a_concept_acts_and_other_rows_are_the_bases_to_the_bit(base, concept):
    adapter = random_adapter(base, concept)
    together = predict(base, ["a dog", "a <my-cat>", "a cat"], adapter)
    plain = predict(base, ["a dog", "a cat", "a cat"])
    assert torch.equal(together[[0, 2]], plain[[0, 2]])
    assert (together[1] - plain[1]).abs().max() > 1e-4


def test_attention_maps_are_the_foundations_for_any_residual(base, concept):
    """Queries, and keys where these depend on the image, leave their projections as the foundation's.

    Cross-attention has none of its own in the customized pass (`test_streams` holds it to the law in numbers).
    """
    adapter = random_adapter(base, concept, std=2.0)
    seen: dict[tuple[str, str], list[torch.Tensor]] = {}
    with base.customized(adapter) as denoiser, torch.no_grad():
        handles = [
            getattr(layer.attention, projection).register_forward_hook(
                lambda _m, _i, output, key=(path, projection): seen.setdefault(key, []).append(output.clone())
            )
            for path, layer in base.text_layers.items()
            for projection in {*layer.borrowed, layer.keys}
        ]
        denoiser.predict(*inputs(base, ["a <my-cat>"], [adapter]))
        for handle in handles:
            handle.remove()
    joint = base.family.architecture in ("stable-diffusion-3", "flux-1")
    assert seen and all(len(passes) == 1 + joint for passes in seen.values())
    for foundation, *customized in seen.values():
        for states in customized:
            torch.testing.assert_close(states, foundation, rtol=0, atol=1e-6)


def test_two_rows_equal_each_row_alone(base, concept):
    adapter = random_adapter(base, concept)
    prompts = ["a <my-cat>", "the <my-cat> and a dog"]
    together = predict(base, prompts, adapter)
    latents, timesteps, conditioning = inputs(base, prompts, [adapter])
    for row in (0, 1):
        with base.customized(adapter) as denoiser, torch.no_grad():
            alone = denoiser.predict(latents[[row]], timesteps[[row]], conditioning.rows([row]))
        torch.testing.assert_close(together[[row]], alone, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_it_learns_and_gradients_reach_only_its_own(base, concept):
    adapter = Infusion(learning_rate=0.02, max_train_steps=20).adapter(base, concept)
    data = training_set(base, concept, subject_masks(base, concept), flip=True)
    generator = torch.Generator().manual_seed(1)
    batches = [data.batch(8, generator) for _ in range(4)]

    @torch.no_grad()
    def loss():
        with base.customized(adapter) as denoiser:
            return sum(denoising_loss(base, denoiser, batch).item() for batch in batches)

    before = loss()
    for _ in train(base, adapter, concept, TrainingSettings(seed=0, train_batch_size=8)):
        pass
    assert all(parameter.abs().max() > 0 for parameter in adapter.parameters())
    assert all(parameter.grad is None for parameter in base.network.parameters())
    assert loss() < before


def test_no_trace(base, concept):
    def state():
        modules = list(base.network.modules())
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
        return base.digest(), hooks, "forward" in vars(base.network)

    before = state()
    predict(base, ["a <my-cat>"], random_adapter(base, concept))
    assert state() == before


def test_the_file_is_all(base, concept, tmp_path):
    adapter = random_adapter(base, concept)
    path = tmp_path / "my-cat.safetensors"
    assert save_adapter(adapter, path, base) == path.stat().st_size
    again = load_adapter(path, base)
    assert torch.equal(predict(base, ["a <my-cat>"], again), predict(base, ["a <my-cat>"], adapter))


def test_honest_size(base, concept):
    adapter = Infusion().adapter(base, concept)
    assert adapter.num_parameters == sum(layer.width for layer in base.text_layers.values())


@pytest.mark.slow
def test_the_stock_pipeline_takes_concepts(pipeline, base, concept):
    adapter = random_adapter(base, concept)
    prompts = ["a cat", "a <my-cat>", "a dog"]
    plain = drawn(pipeline, ["a cat", "a cat", "a dog"], 1, 2, 3)
    images = drawn(customize(pipeline, adapter), prompts, 1, 2, 3)
    assert np.array_equal(images[[0, 2]], plain[[0, 2]])
    assert not np.array_equal(images[1], plain[1])


def test_pipeline_and_our_sampler_draw_the_same_concept(pipeline, base, concept):
    adapter = random_adapter(base, concept, std=0.1)
    guidance = 1.0 if not_guided(base) else 4.0
    theirs = drawn(customize(pipeline, adapter), "a <my-cat>", 5, guidance_scale=guidance, output_type="pil")
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": guidance}
    ours = generate(base, "a <my-cat>", [adapter], seeds=(5,), **settings)
    assert difference(ours[0], theirs[0]) <= 1


@pytest.mark.parametrize("name", TRUE_GUIDANCE, indirect=True)
def test_negative_prompts_are_never_customized(pipeline, base, concept):
    adapter = random_adapter(base, concept)
    negative = {"negative_prompt": "dog", "guidance_scale": 4.0}
    none = {"negative_prompt": "a cat and a cat", "guidance_scale": 1.0}
    guided = drawn(customize(pipeline, adapter), "a <my-cat>", 1, output_type="pil", **negative)
    ours = generate(base, "a <my-cat>", [adapter], seeds=(1,), num_inference_steps=3, **negative)
    assert difference(guided[0], ours[0]) <= 1
    assert not np.array_equal(
        drawn(customize(pipeline, adapter), "a <my-cat>", 1, **none), drawn(pipeline, "a cat", 1, **none)
    )


def test_guidance_by_default_is_the_familys(concept):
    flux, schnell = (Base.from_pipeline(tiny(name)) for name in ("flux", "flux-schnell"))
    assert [base.family.default_guidance_scale(base.pipeline) for base in (flux, schnell)] == [3.5, 1.0]
    with pytest.raises(UserError, match="no negative prompt"):
        generate(flux, "a cat", negative_prompt="dog")


@pytest.mark.parametrize("name", ["sd-3", "flux"], indirect=True)
def test_few_steps_of_a_flow_are_drawn_by_its_own_scheduler(base):
    assert few_step_scheduler(base) is base.scheduler


def test_flux_guided_by_a_negative_prompt(concept):
    """The pipeline runs its network twice: for the prompts, then for the negative prompts."""
    pipeline = tiny("flux-schnell")
    base = Base.from_pipeline(pipeline)
    adapter = random_adapter(base, concept)
    rows = []
    handle = pipeline.transformer.x_embedder.register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    drawn(
        customize(pipeline, adapter), "a <my-cat>", 1, true_cfg_scale=3.0, negative_prompt="dog", num_inference_steps=1
    )
    handle.remove()
    assert rows == [1, 1, 1]  # foundation and customized; negative


def words_at(tokenizer, ids, positions):
    return tokenizer.decode([ids[at] for at in positions]).strip()


@pytest.mark.parametrize("noun", ["cat", "teddy bear", "teddybear"])
@pytest.mark.parametrize("text", ["a {}", "{}, a photo", "a photo of the {}.", "  a {} AND a dog next to a {}"])
def test_the_concepts_tokens_are_the_nouns(pipeline, base, noun, text):
    prompt = parse_prompt(text.replace("{}", "<x>"), {"x": noun})
    ids, (tokens,) = base.family.tokenize(pipeline, [prompt])
    own = [at for at in tokens["x"] if at < ids.shape[1]]
    readers = {"flux-1": pipeline.__dict__.get("tokenizer_2") or getattr(pipeline, "tokenizer_2", None)}
    tokenizer = readers.get(base.family.architecture) or pipeline.tokenizer
    if base.family.architecture == "stable-diffusion-3":
        own = [at for at in own if at < pipeline.tokenizer_max_length]
    found = words_at(tokenizer, ids[0].tolist(), own).replace(" ", "").lower()
    assert found == noun.replace(" ", "") * text.count("{}")


def test_stable_diffusion_3_has_the_noun_in_both_halves(concept):
    base = Base.from_pipeline(stable_diffusion_3())
    tokens = base.encode(["a <x>"], {"x": "cat"}).concept_tokens[0]["x"]
    assert len(tokens) == 2 and tokens[0] < 32 <= tokens[1]


def test_training_leans_towards_noise_as_the_sampler_does():
    """The shift of arXiv 2403.03206, equation 23: half of the way becomes three quarters at a shift of 3."""
    schedule = Base.from_pipeline(tiny("sd-3")).noise_schedule
    assert training_timesteps(schedule, torch.tensor([499, 999])).tolist() == [750, 1000]


def test_two_text_models_that_disagree_on_the_noun_are_refused(concept):
    base = Base.from_pipeline(tiny("sdxl"))
    base.pipeline.tokenizer_2 = base.pipeline.tokenizer_2.train_new_from_iterator(["dog dog"], vocab_size=600)
    with pytest.raises(UserError, match="different tokens"):
        base.encode(["a <x>"], {"x": "cat"})


@torch.no_grad()
def test_tokens_that_are_not_read_have_no_say_where_the_family_says_so(pipeline, base):
    latents, timesteps, told = inputs(base, ["a cat"])
    unread = torch.ones_like(told.token_ids) if told.attention_mask is None else told.attention_mask
    padding = torch.nn.functional.pad(unread == 0, (0, told.text_states.shape[1] - unread.shape[1]))
    changed = replace(told, text_states=told.text_states + padding[..., None].float())
    same = torch.equal(base.predict(latents, timesteps, changed), base.predict(latents, timesteps, told))
    assert base.family.masks_text == (same and bool(padding.any()))


def test_as_many_rows_as_a_picture_has_places(concept):
    """What FLUX.1 is told of places is for all rows alike, also where there happen to be as many of both."""
    base = Base.from_pipeline(tiny("flux"))
    adapter = random_adapter(base, concept)
    prompts = ["a <my-cat>"] + ["a dog"] * 15
    latents, timesteps, told = inputs(base, prompts, [adapter])
    assert len(latents) == latents[0, 0].numel() // 4
    with base.customized(adapter) as denoiser, torch.no_grad():
        together = denoiser.predict(latents, timesteps, told)[:1]
        alone = denoiser.predict(latents[:1], timesteps[:1], told.rows([0]))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_beyond_what_is_read_is_refused(pipeline, base):
    with pytest.raises(UserError, match="beyond"):
        base.encode(["cat " * 600 + "<x>"], {"x": "cat"})


def test_a_file_of_another_family_is_refused(base, concept, tmp_path):
    other = Base.from_pipeline(tiny("pixart-sigma" if base.family.architecture != "pixart" else "sdxl"))
    save_adapter(random_adapter(other, concept), tmp_path / "a.safetensors", other)
    with pytest.raises(UserError, match="of the family"):
        load_adapter(tmp_path / "a.safetensors", base, any_base=True)


def test_an_unknown_kind_is_refused():
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    with pytest.raises(UserError, match="DDPMPipeline is of a kind"):
        Base.from_pipeline(DDPMPipeline(unet, DDPMScheduler()))


def test_a_pipeline_that_lacks_a_part_is_refused():
    pipeline = tiny("sdxl")
    pipeline.vae = None
    with pytest.raises(UserError, match="lacks vae"):
        Base.from_pipeline(pipeline)


@pytest.mark.parametrize("method", [TextualInversion, ExtendedTextualInversion, Perfusion, LoRA, CustomDiffusion])
def test_methods_for_stable_diffusion_say_so(concept, method):
    with pytest.raises(UserError, match=r"works on Stable Diffusion 1\.x and 2\.x"):
        method().adapter(Base.from_pipeline(tiny("sdxl")), concept)


def test_dreambooth_works_on_every_family(base, concept):
    fresh = DreamBooth(max_train_steps=1, num_class_images=2).adapter(base, concept)
    torch.testing.assert_close(predict(base, ["a <my-cat>"], fresh), predict(base, ["a sks cat"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sdxl", "pixart-sigma", "sana"], indirect=True)
def test_masks_come_from_the_models_own_attention(base):
    masks = attention_masks(base, [Image.new("RGB", (base.size_px,) * 2, "red")], "cat")
    assert [mask.size for mask in masks] == [(base.size_px,) * 2]


@pytest.mark.parametrize("name", ["pixart-sigma", "sana"], indirect=True)
def test_attention_to_tokens_that_are_not_read_is_not_counted(base):
    images = [Image.new("RGB", (base.size_px,) * 2, "red")]
    (read,) = attention_masks(base, images, "cat")
    base.family.masks_text = False
    (whole,) = attention_masks(base, images, "cat")
    assert difference(read, whole) > 0


def test_joint_attention_gives_no_masks(concept):
    with pytest.raises(UserError, match="give masks"):
        attention_masks(Base.from_pipeline(tiny("sd-3")), list(concept.images), "cat")


@pytest.mark.parametrize("name", ["sd-1", "flux"], indirect=True)
def test_the_divergence_is_measured_on_flows_too(base, concept):
    """The noise that a flow sees is the noise that was added, where it predicts the truth."""

    class Truth:
        def __init__(self, latents, noise):
            self.latents, self.noise = latents, noise

        def predict(self, noisy, timesteps, conditioning):
            return training_target(schedule, self.latents, self.noise, timesteps)

    schedule = base.noise_schedule
    probe = Probe(torch.randn(2, *base.latent_shape), torch.tensor([0, 1]))
    told = base.encode(["a cat", "a dog"])
    timesteps = stratified_timesteps(schedule, probe, 3, seed=0)
    truth = Truth(probe.latents.repeat_interleave(3, 0), noise_of(schedule, probe, 3))
    found = eps_predictions(truth, schedule, probe, told, 3, seed=0, batch_size=6)
    torch.testing.assert_close(found.flatten(0, 1), truth.noise, rtol=0, atol=2e-4)
    moved = latent_fisher_divergence(found, found + 0.1, found + 1, probe, schedule, timesteps)
    assert np.allclose(moved.eps, 0.01, atol=1e-5) and (moved.kl > 0).all() and np.isfinite(moved.kl).all()


def noise_of(schedule, probe, num):
    return latent_fisher._draws(schedule, probe, num, 0)[1].flatten(0, 1)


def test_gradient_checkpointing_changes_no_gradient(base, concept):
    """Layers that are run again for the backward pass are run with the foundation's maps and the residuals, too."""
    runs = []
    adapter = random_adapter(base, concept)
    for checkpointing in (False, True):
        if checkpointing:
            base.network.enable_gradient_checkpointing()
        adapter.zero_grad()
        with base.customized(adapter) as denoiser:
            denoiser.predict(*inputs(base, ["a <my-cat>", "a dog"], [adapter])).square().mean().backward()
        runs.append([parameter.grad.clone() for parameter in adapter.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in runs[0])
    for plain, again in zip(*runs, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_the_table_of_families_is_what_its_tool_counts():
    tool = Path(__file__).parents[2] / "tools" / "family_table.py"
    subprocess.run([sys.executable, tool, "--check"], check=True)


def halved(pipeline):
    """Frozen weights in bfloat16, the autoencoder in float32, as `load_base` holds them."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module) and part is not pipeline.vae:
            part.to(torch.bfloat16)


@pytest.mark.slow
def test_half_precision_trains_and_draws(pipeline, base, concept):
    halved(pipeline)
    adapter = Infusion(max_train_steps=2, learning_rate=0.05).adapter(base, concept)
    assert all(np.isfinite(now.loss) for now in train(base, adapter, concept, TrainingSettings(train_batch_size=2)))
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    picture = generate(base, "a <my-cat>", [adapter], num_inference_steps=2)[0]
    assert picture.size == (base.size_px,) * 2


@pytest.mark.slow
def test_half_precision_draws_what_the_stock_pipeline_draws(pipeline, base, concept):
    """In a precision this coarse, nothing but the same arithmetic gives the same latents."""
    halved(pipeline)
    guidance = 1.0 if not_guided(base) else 4.0
    adapter = random_adapter(base, concept)
    for prompt, adapters in (("a cat", []), ("a <my-cat>", [adapter])):
        their_pipeline = customize(pipeline, *adapters)
        theirs = drawn(their_pipeline, prompt, 5, guidance_scale=guidance, output_type="latent")
        if base.family.architecture == "flux-1":
            theirs = base.family.prediction(theirs, torch.empty(1, *base.latent_shape))
        settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": guidance}
        (ours,) = sample_prompts(base, prompt, adapters, seeds=(5,), **settings)
        assert torch.equal(ours, theirs)
