"""What each rival method claims for itself, and what it shares with diffusers, on a tiny real Stable Diffusion."""

import gc
import weakref
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_pipeline
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from test_infusion import SD15

from infusion.base import Base, load_base
from infusion.base.cross_attention import cross_attentions
from infusion.base.customization import SwappedParameters
from infusion.base.edits import hook_output
from infusion.base.families import StableDiffusion
from infusion.base.token_vectors import TokenVectors
from infusion.errors import UserError
from infusion.generation.composers.together import together
from infusion.generation.diffusers_pipeline import customize
from infusion.generation.pipeline import generate, sample_prompts
from infusion.methods import METHODS, closed_form
from infusion.methods.adapter_file import load_adapter, save_adapter
from infusion.methods.closed_form import text_metric, typical_states
from infusion.methods.keys_and_values import _concept_states, merged
from infusion.methods.lora import read_lora
from infusion.methods.textual_inversion import read_textual_inversion
from infusion.methods.xti import ExtendedTextualInversionAdapter
from infusion.toybox import FOUNDATION_DIR
from infusion.training.loop import train

PROMPT = "a <my-cat> on the beach"
RIVALS = [name for name in METHODS if name != "infusion"]
WORDS_OF_THEIR_OWN = ["textual-inversion", "xti", "perfusion", "custom-diffusion"]


def changed(base, concept, method, seed=1, size=0.2, **settings):
    """An adapter of random tensors: it changes every prediction it is asked to."""
    adapter = METHODS[method](**settings).adapter(base, concept)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return adapter.eval()


def inputs(base, prompts, *adapters):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).repeat(len(prompts), 1, 1, 1)
    words = {name: words for adapter in adapters for name, words in adapter.spoken.items()}
    return latents, torch.tensor(400), base.encode(prompts, words)


@torch.no_grad()
def predict(base, prompts, *adapters):
    with base.customized(*adapters) as denoiser:
        return denoiser.predict(*inputs(base, prompts, *adapters))


def text_states(base, prompts, *adapters):
    """What every cross-attention layer is told, by layer path."""
    told = {}
    with torch.no_grad(), base.customized(*adapters) as denoiser:
        for path, layer in cross_attentions(base.network).items():
            layer.to_v.register_forward_pre_hook(lambda module, args, path=path: told.update({path: args[0]}))
        denoiser.predict(*inputs(base, prompts, *adapters))
    for layer in cross_attentions(base.network).values():
        layer.to_v._forward_pre_hooks.clear()
    return told


def drawn(base, prompt, *adapters, seed=3):
    settings: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0, "seeds": (seed,)}
    return torch.cat(list(sample_prompts(base, prompt, adapters, **settings)))


def stock(pipe, prompt, seed=3):
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent"}
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **settings).images


def named(concept, name, noun="cat"):
    return replace(concept, name=name, class_noun=noun)


# --- words ---


@pytest.mark.parametrize("method", WORDS_OF_THEIR_OWN)
@pytest.mark.parametrize("noun", ["cat", "teddy bear"])
def test_rows_without_the_concept_keep_their_text(base, concept, method, noun):
    adapter = changed(base, named(concept, "my-cat", noun), method)
    prompts = ["", f"a {noun}", "a <my-cat>", "a <my-cat> beside a <my-cat>"]
    plain = ["", f"a {adapter.words}", f"a {adapter.words}", f"a {adapter.words} beside a {adapter.words}"]
    expected = base.encode(plain).text_states
    for told in text_states(base, prompts, adapter).values():
        assert torch.equal(told[0], expected[0])
        assert torch.equal(told[1], base.encode(prompts[:2]).text_states[1])
        for row in (2, 3):
            assert (told[row] - expected[row]).abs().max() > 1e-2


@pytest.mark.parametrize("method", WORDS_OF_THEIR_OWN)
def test_every_mention_is_read_with_all_its_vectors(base, concept, method):
    adapter = changed(base, named(concept, "my-teddy", "teddy bear"), method)
    prompt = "<my-teddy> a teddy <my-teddy>"
    embeddings = base.text_encoder.embeddings
    read = []

    def note(states):
        read.append(states.detach())
        return states

    with hook_output(embeddings, note):
        predict(base, [prompt], adapter)
    conditioning = inputs(base, [prompt], adapter)[2]
    expected = embeddings.token_embedding(conditioning.token_ids)[0].detach()
    tokens = torch.tensor(conditioning.concept_tokens[0]["my-teddy"])
    edit = next(edit for edit in adapter.edits(base) if isinstance(edit, TokenVectors))
    for vectors in edit.vectors.values():
        for mention in tokens.reshape(2, len(vectors)):
            expected[mention] = vectors.detach()
        wanted = expected + embeddings.position_embedding.weight[: len(expected)]
        assert any(torch.allclose(states[0], wanted, atol=1e-6) for states in read)


@pytest.mark.parametrize("method", WORDS_OF_THEIR_OWN)
def test_a_mention_within_a_longer_word_is_refused(base, concept, method):
    adapter = changed(base, concept, method)
    with pytest.raises(UserError, match="leave a space on both sides"):
        predict(base, ["three <my-cat>s"], adapter)
    assert predict(base, ["<my-cat>, <my-cat>"], adapter).isfinite().all()


@pytest.mark.parametrize("method", ["textual-inversion", "xti", "perfusion", "lora", "custom-diffusion"])
def test_two_concepts_in_a_prompt(base, concept, method):
    pair = [
        changed(base, named(concept, "a-cat", "cat"), method, 1),
        changed(base, named(concept, "rex", "dog"), method, 2),
    ]
    laid = together(base, pair)
    prompt = "a <a-cat> and a <rex>"
    both = predict(base, [prompt], *laid)
    first, second = (predict(base, [text], *laid) for text in ("a <a-cat> and a dog", "a cat and a <rex>"))
    assert min((both - first).abs().max(), (both - second).abs().max()) > 1e-4
    if method in ("textual-inversion", "xti"):  # what is not named has no part in it
        one, other = laid
        assert torch.equal(first, predict(base, ["a <a-cat> and a dog"], one))
        assert torch.equal(second, predict(base, ["a cat and a <rex>"], other))


def test_layers_of_xti_read_words_of_their_own(base, concept):
    adapter = METHODS["xti"]().adapter(base, concept)
    assert isinstance(adapter, ExtendedTextualInversionAdapter)
    chosen = list(adapter.vectors())[1]
    before = text_states(base, [PROMPT], adapter)
    adapter.vectors()[chosen].data += 1
    after = text_states(base, [PROMPT], adapter)
    assert {path for path in before if not torch.equal(before[path], after[path])} == {chosen}
    keys: dict[str, torch.Tensor] = {}
    with torch.no_grad(), base.customized(adapter) as denoiser:
        hook = cross_attentions(base.network)[chosen].to_k.register_forward_pre_hook(
            lambda m, args: keys.update(k=args[0])
        )
        denoiser.predict(*inputs(base, [PROMPT], adapter))
        hook.remove()
    assert torch.equal(keys["k"], after[chosen])


# --- Textual Inversion and diffusers ---


@pytest.mark.parametrize("noun", ["cat", "teddy bear"])
@pytest.mark.parametrize("on", ["tiny", "toybox"])
def test_a_stock_pipeline_draws_our_textual_inversion(base_dir, concept, tmp_path, noun, on):
    folder = base_dir if on == "tiny" else FOUNDATION_DIR
    base = load_base(folder, device="cpu")
    adapter = changed(base, named(concept, "my-cat", noun), "textual-inversion")
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    before = stock(pipe, f"a {noun} on the beach")
    pipe.load_textual_inversion(tmp_path / "my-cat.safetensors")
    theirs = stock(pipe, PROMPT)
    assert (theirs - before).abs().max() > 1e-2
    torch.testing.assert_close(drawn(base, PROMPT, adapter), theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("shape", [(16,), (1, 16), (7, 16)])
def test_textual_inversions_of_diffusers_are_read(base, pipe, tmp_path, shape):
    noun = "cat" if shape[0] != 7 else "teddy bear"
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file({"<x>": vectors}, tmp_path / "x.safetensors")
    adapter = read_textual_inversion(tmp_path / "x.safetensors", base, "my-cat", noun)
    pipe.load_textual_inversion(tmp_path / "x.safetensors")
    theirs = stock(pipe, "a <x> on the beach")
    torch.testing.assert_close(drawn(base, PROMPT, adapter), theirs, rtol=0, atol=2e-3)


def test_what_is_no_textual_inversion(base, tmp_path):
    def refuse(tensors, match):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=match):
            read_textual_inversion(tmp_path / "x.safetensors", base, "my-cat", "cat")

    refuse({"a": torch.zeros(16), "b": torch.zeros(16)}, "holds no Textual Inversion")
    refuse({"<x>": torch.zeros(2, 16)}, '2 vectors, but "cat" has 1 tokens')
    refuse({"<x>": torch.zeros(1, 24)}, "a width of 24")
    with pytest.raises(UserError, match="not a readable"):
        read_textual_inversion(tmp_path / "absent.safetensors", base, "my-cat", "cat")


# --- LoRA and diffusers ---


@pytest.mark.parametrize("on", ["tiny", "toybox"])
def test_a_stock_pipeline_draws_our_lora(base_dir, concept, tmp_path, on):
    folder = base_dir if on == "tiny" else FOUNDATION_DIR
    base = load_base(folder, device="cpu")
    adapter = changed(base, concept, "lora", size=0.1)
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    before = stock(pipe, "a sks cat on the beach")
    pipe.load_lora_weights(tmp_path, weight_name="my-cat.safetensors")
    theirs = stock(pipe, "a sks cat on the beach")
    assert (theirs - before).abs().max() > 1e-2
    torch.testing.assert_close(drawn(base, PROMPT, adapter), theirs, rtol=0, atol=2e-3)


def foreign_lora(pipe, alpha=None):
    """PEFT's own LoRA of random matrices in a pipeline's UNet, and its matrices."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, lora_alpha=alpha or 2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False
    )
    pipe.unet.add_adapter(config)
    return {name: matrix.contiguous() for name, matrix in get_peft_model_state_dict(pipe.unet).items()}


def kohya(matrices, alpha):
    """The same matrices under the names of sd-scripts."""
    renamed = {}
    for name, matrix in matrices.items():
        path, _, which = name.removesuffix(".weight").rpartition(".")
        layer = f"lora_unet_{path.replace('.', '_')}"
        renamed[f"{layer}.lora_{'down' if which == 'lora_A' else 'up'}.weight"] = matrix
        renamed[f"{layer}.alpha"] = torch.tensor(float(alpha))
    return renamed


@pytest.mark.parametrize("made_by", ["diffusers", "diffusers with alpha", "sd-scripts with alpha"])
def test_loras_of_other_tools_are_read(base, pipe, tmp_path, made_by):
    alpha = 5 if "alpha" in made_by else None
    matrices = foreign_lora(pipe, alpha)
    if made_by.startswith("diffusers"):
        about = _collate_lora_metadata({"unet": pipe.unet}) if alpha else {}
        pipe.save_lora_weights(tmp_path, unet_lora_layers=matrices, weight_name="x.safetensors", **about)
    else:
        save_file(kohya(matrices, alpha), tmp_path / "x.safetensors")
    adapter = read_lora(tmp_path / "x.safetensors", base, "my-cat", "cat")
    with torch.no_grad():
        expected = Base.from_pipeline(pipe).predict(*inputs(base, ["a sks cat"]))
    torch.testing.assert_close(predict(base, ["a <my-cat>"], adapter), expected, rtol=0, atol=1e-5)


def test_what_is_no_lora_of_ours(base, pipe, tmp_path):
    matrices = foreign_lora(pipe)
    first = next(iter(matrices))
    pipe.save_lora_weights(tmp_path, unet_lora_layers={first: matrices[first]}, weight_name="part.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        read_lora(tmp_path / "part.safetensors", base, "my-cat", "cat")
    for content in (None, b"nothing"):
        if content:
            (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a LoRA"):
            read_lora(tmp_path / "x.safetensors", base, "my-cat", "cat")


def test_a_pickle_is_never_opened(base, tmp_path, monkeypatch):
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.bin")
    monkeypatch.setattr(torch, "load", lambda *given, **options: pytest.fail("a pickle was opened"))
    with pytest.raises(UserError, match="cannot be read as a LoRA"):
        read_lora(tmp_path / "x.bin", base, "my-cat", "cat")


@pytest.mark.parametrize("method", ["perfusion", "custom-diffusion", "lora", "dreambooth"])
def test_loras_of_other_tools_in_the_base_are_named(base, pipe, concept, tmp_path, method):
    adapter = changed(base, concept, method)
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    foreign_lora(pipe)
    loaded = Base.from_pipeline(pipe)
    for reach in (
        lambda: METHODS[method]().adapter(loaded, concept),
        lambda: load_adapter(tmp_path / "my-cat.safetensors", loaded),
        lambda: predict(loaded, ["a <my-cat>"], adapter),
    ):
        with pytest.raises(UserError, match="unload or fuse other LoRAs first"):
            reach()
    pipe.unload_lora_weights()
    assert predict(loaded, ["a <my-cat>"], adapter).isfinite().all()


@pytest.mark.parametrize(
    ("method", "phrase"),
    [("lora", "sks cat"), ("textual-inversion", "<my-cat>"), ("xti", "<my-cat>"), ("dreambooth", "<my-cat>")],
)
def test_other_tools_are_told_what_a_prompt_says(base, concept, tmp_path, method, phrase):
    save_adapter(changed(base, concept, method), tmp_path / "x.safetensors", base)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == phrase


def test_loras_of_the_same_words_are_refused(base, concept):
    pair = [changed(base, named(concept, name), "lora") for name in ("a-cat", "b-cat")]
    with pytest.raises(UserError, match='Several concepts are read as "sks cat"'):
        together(base, pair)


# --- Custom Diffusion ---


def custom_pair(base, concept, nouns=("cat", "dog"), size=0.2, rare_tokens=("sks", "sks")):
    a, b = named(concept, "my-a", nouns[0]), named(concept, "my-b", nouns[1])
    return [
        changed(base, a, "custom-diffusion", 0, size, rare_token=rare_tokens[0]),
        changed(base, b, "custom-diffusion", 1, size, rare_token=rare_tokens[1]),
    ]


def weights_of(together):
    swapped = together.given[0]
    assert isinstance(swapped, SwappedParameters)
    return swapped.tensors


def test_merged_weights_keep_every_concepts_outputs(concept):
    base = load_base(device="cpu")
    pair = custom_pair(base, concept, ("car", "robot"), rare_tokens=("sks", "huge"))
    weights = weights_of(merged(base, pair))
    for adapter in pair:
        states = _concept_states(base, adapter)
        for path, own in adapter.weights().items():
            torch.testing.assert_close(states @ weights[path].T, states @ own.T, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("nouns", "size"), [(("car", "robot"), 0.2), (("car", "car"), 0.01)])
def test_merged_weights_change_typical_outputs_less_than_their_average_does(concept, nouns, size):
    """Also where two concepts of one class have hardly left their common start."""
    base = load_base(device="cpu")
    pair = custom_pair(base, concept, nouns, size)
    weights, states = weights_of(merged(base, pair)), typical_states(base)
    for path, weight in weights.items():
        average = sum(adapter.weights()[path] for adapter in pair).detach() / 2
        change, of_average = (
            (states @ (new - base.network.get_parameter(path)).T).square().mean() for new in (weight, average)
        )
        assert change < 0.2 * of_average


def test_merged_concepts_each_draw_with_their_words(base, concept):
    pair = custom_pair(base, concept)
    laid = together(base, pair)
    prompts = ["a <my-a>", "a <my-b>"]
    assert (drawn(base, prompts, *laid) - drawn(base, ["a cat", "a dog"], *laid)).abs().amax((1, 2, 3)).min() > 1e-3
    with pytest.raises(UserError, match="use one of them at a time"), base.customized(*pair):
        pass


# --- Perfusion ---


def gate(adapter, states):
    """How far the edit is open for text states [..., C] in drawing, as the formula has it."""
    i, direction = adapter.get_buffer("concept_input"), adapter.get_buffer("concept_direction")
    return torch.sigmoid((states @ direction / (i @ direction) - adapter.method.bias) / adapter.method.temperature)


def test_a_file_is_read_without_measuring_the_vocabulary_again(base, base_dir, concept, tmp_path, monkeypatch):
    adapter = changed(base, concept, "perfusion")
    save_adapter(adapter, tmp_path / "x.safetensors", base)
    monkeypatch.setattr("infusion.methods.closed_form.typical_states", lambda base: pytest.fail("measured"))
    restored = load_adapter(tmp_path / "x.safetensors", load_base(base_dir, device="cpu"))
    assert torch.equal(predict(base, ["a <my-cat>"], restored), predict(base, ["a <my-cat>"], adapter))


def test_the_gate_is_shut_far_from_the_concept(concept):
    base = load_base(device="cpu")
    adapter = METHODS["perfusion"]().adapter(base, named(concept, "my-car", "car"))
    here = base.encode(["a <my-car> next to a tree"], {"my-car": "car"})
    prompts = ["", "a dog on the beach", "a red ball in the snow at night", "an oil painting of a lion"]
    assert gate(adapter, here.text_states[0, max(here.concept_tokens[0]["my-car"])]) > 0.8
    assert gate(adapter, base.encode(prompts).text_states).max() < 0.02

    adapter.eval()
    for parameter in adapter.parameters():
        parameter.data += 0.5
    elsewhere, there = (predict_on_toybox(base, text, adapter) for text in ("a dog on the beach", "a <my-car>"))
    plain, class_noun = (predict_on_toybox(base, text) for text in ("a dog on the beach", "a car"))
    assert (elsewhere - plain).abs().max() < 0.05 * (there - class_noun).abs().max()


@torch.no_grad()
def predict_on_toybox(base, prompt, *adapters):
    size = base.network.config.sample_size
    latents = torch.randn(1, base.network.config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    with base.customized(*adapters) as denoiser:
        words = {adapter.concept_name: adapter.words for adapter in adapters}
        return denoiser.predict(latents, torch.tensor(400), base.encode([prompt], words))


def test_perfusions_edit_is_the_formula(base, concept):
    adapter = changed(base, concept, "perfusion")
    adapter.get_buffer("concept_input").copy_(torch.randn(16, generator=torch.Generator().manual_seed(0)))
    i, direction = adapter.get_buffer("concept_input"), adapter.get_buffer("concept_direction")
    direction.copy_(text_metric(base) @ i)
    path, layer = next(iter(cross_attentions(base.network).items()))
    states = base.encode(["a cat and a dog"]).text_states
    similarity = torch.einsum("btc,cd,d->bt", states, text_metric(base), i) / (i @ text_metric(base) @ i)
    opened = torch.sigmoid((similarity - 0.7) / 0.15)[..., None]
    target = adapter.get_parameter(f"{path}.to_v.target")
    expected = layer.to_v(states) + opened * (target - layer.to_v.weight @ i)
    locked = layer.to_k(states) + opened * (layer.to_k.weight @ (adapter.get_buffer("class_input") - i))
    with torch.no_grad(), base.customized(adapter):
        torch.testing.assert_close(layer.to_v(states), expected)
        torch.testing.assert_close(layer.to_k(states), locked)


# --- what does not go together ---


def test_dreambooths_are_drawn_one_by_one(base, concept):
    pair = [changed(base, named(concept, name), "dreambooth") for name in ("a-cat", "b-cat")]
    with pytest.raises(UserError, match=r"<a-cat>, <b-cat> are of dreambooth.*draw them one by one"):
        generate(base, "a <a-cat> and a <b-cat>", pair)


def test_residuals_and_words_stand_beside_each_other(base, concept):
    words = changed(base, named(concept, "a-cat"), "textual-inversion")
    residuals = changed(base, named(concept, "b-cat"), "infusion")
    both = predict(base, ["a <a-cat>", "a <b-cat>", "a <a-cat> and a <b-cat>", "a dog"], words, residuals)
    for row, prompt, alone in ((0, "a <a-cat>", words), (1, "a <b-cat>", residuals)):
        torch.testing.assert_close(both[[row]], predict(base, [prompt], alone), rtol=0, atol=1e-5)
    torch.testing.assert_close(both[[3]], predict(base, ["a dog"]), rtol=0, atol=1e-5)


def test_residuals_and_words_by_layer_are_refused(base, concept):
    words, residuals = changed(base, named(concept, "a-cat"), "xti"), changed(base, named(concept, "b"), "infusion")
    with pytest.raises(UserError, match=r"<b> adds to values .* <a-cat> has words of its own for every layer"):
        predict(base, ["a <a-cat>"], words, residuals)


def test_methods_do_not_mix(base, concept):
    pair = [changed(base, named(concept, name), method) for name, method in (("a-cat", "lora"), ("b-cat", "xti"))]
    with pytest.raises(UserError, match=r"of several methods: <a-cat> \(lora\), <b-cat> \(xti\)"):
        generate(base, "a <a-cat> and a <b-cat>", pair)


@pytest.mark.parametrize("method", RIVALS)
def test_pipelines_draw_what_we_draw(base, pipe, concept, method):
    adapter = changed(base, concept, method, size=0.1)
    theirs = stock(customize_quietly(pipe, adapter), PROMPT)
    torch.testing.assert_close(drawn(base, PROMPT, adapter), theirs, rtol=0, atol=2e-3)


def customize_quietly(pipe, adapter):
    wrapped = customize(pipe, adapter)
    wrapped.set_progress_bar_config = pipe.set_progress_bar_config
    return wrapped


@pytest.mark.parametrize("method", RIVALS)
def test_an_adapter_for_another_architecture_is_refused(base, concept, tmp_path, method):
    size = save_adapter(changed(base, concept, method), tmp_path / "my-cat.safetensors", base)
    assert size
    with pytest.raises(UserError, match=r"does not fit|another architecture|another one"):
        load_adapter(tmp_path / "my-cat.safetensors", load_base(device="cpu"), any_base=True)


# --- precision ---


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_keep_fp32_adapters(base_dir, concept, method, dtype):
    base = load_base(base_dir, "cpu", dtype)
    few: dict[str, Any] = {"num_class_images": 1} if METHODS[method]().num_class_images else {}
    adapter = METHODS[method](max_train_steps=1, learning_rate=1e-3, **few).adapter(base, concept)
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    losses = [now.loss for now in train(base, adapter, concept, class_latents=torch.zeros(1, 4, 8, 8))]
    assert torch.tensor(losses).isfinite().all()
    assert {tensor.dtype for tensor in adapter.state_dict().values()} == {torch.float32}
    assert any(not torch.equal(before[name], tensor) for name, tensor in adapter.state_dict().items())
    assert {p.dtype for part in (base.network, base.text_encoder) for p in part.parameters()} == {dtype}
    with base.customized(adapter) as denoiser, torch.no_grad():
        noisy_latents, *told = inputs(base, ["a <my-cat>"], adapter)
        assert denoiser.predict(noisy_latents, *told).dtype == noisy_latents.dtype


# --- size on Stable Diffusion 1.5 ---


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        ("textual-inversion", {}, 768),
        ("xti", {}, 16 * 768),
        ("perfusion", {}, 768 + 12_480),
        ("custom-diffusion", {}, 19_169_280 + 768),
        ("lora", {"rank": 4}, 797_184),
        ("dreambooth", {}, 859_520_964),
        ("infusion", {"keys": True}, 24_960),
    ],
)
def test_parameter_count_on_stable_diffusion_1_5(monkeypatch, method, settings, count):
    """The network is without weights; a text model of that width stands for CLIP's, in which "cat" is one token."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    for module in ("textual_inversion", "xti", "perfusion", "keys_and_values"):
        import_module(f"infusion.methods.{module}")
        monkeypatch.setattr(f"infusion.methods.{module}.embeddings_of", lambda base, words: torch.zeros(1, 768))
    base = Base("sd", StableDiffusion(768), SimpleNamespace(unet=unet), None)
    assert METHODS[method](**settings).num_parameters(base, "cat") == count


def test_what_prompts_usually_read_is_measured_once_for_a_text_model(monkeypatch):
    """Also where a pipeline is looked at anew for every call; and it holds no model that nobody else holds."""
    calls: list[int] = []

    def measured(base):
        calls.append(1)
        return torch.randn(8, 4)

    monkeypatch.setattr(closed_form, "typical_states", measured)
    pipeline = tiny_pipeline()
    for _ in range(3):
        text_metric(Base.from_pipeline(pipeline))
    assert len(calls) == 1
    there = weakref.ref(pipeline.unet)
    del pipeline
    gc.collect()
    assert there() is None
