"""Customizations of other tools, made by their own libraries, read into models that predict as there."""

import json
from typing import Any

import pytest
import tiny_families
import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from diffusers.training_utils import _collate_lora_metadata
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_rivals import changed

from infusion.base import load_base
from infusion.base.edits import bare
from infusion.errors import UserError
from infusion.foreign import checkpoints, customized, inspect
from infusion.foreign.layer_names import LayerNames
from infusion.methods.adapter_file import save_adapter

PROMPTS = ["a photo of a cat", "a dog on the beach"]
UNET_LAYERS = ["to_q", "to_v", "to_out.0", "proj_in", "conv1", "time_emb_proj", "ff.net.2", "conv_shortcut"]
TEXT_LAYERS = ["q_proj", "out_proj", "fc1"]


@torch.no_grad()
def predict(base, prompts=PROMPTS, words=None):
    latents = torch.randn(1, *base.latent_shape, generator=torch.Generator().manual_seed(2))
    told = base.encode(prompts, words)
    return base.predict(latents.repeat(len(prompts), 1, 1, 1), torch.tensor(400), told)


def assert_same_model(base, other, **options):
    torch.testing.assert_close(predict(base, **options), predict(other, **options), atol=2e-5, rtol=1e-4)


def assert_changed(base, other, **options):
    assert (predict(base, **options) - predict(other, **options)).abs().max() > 1e-4


def lora_pipe(base_dir, **options):
    """A pipeline of random LoRAs on convolutions, linear layers and text."""
    pipe = load_base(base_dir, device="cpu").pipeline
    torch.manual_seed(3)
    options = {"r": 4, "lora_alpha": 2, "init_lora_weights": False} | options
    pipe.unet.add_adapter(LoraConfig(target_modules=UNET_LAYERS, **options))
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).add_adapter(LoraConfig(target_modules=TEXT_LAYERS, **options))
    return pipe


def save_lora(pipe, folder):
    """The file that diffusers' training scripts write."""
    names = [name for name in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]
    parts = {name: getattr(pipe, name) for name in names}
    layers = {f"{name}_lora_layers": get_peft_model_state_dict(part) for name, part in parts.items()}
    pipe.save_lora_weights(folder, **layers, **_collate_lora_metadata(parts))
    return folder / "pytorch_lora_weights.safetensors"


def kohya_tensors(pipe, sgm=False):
    """The LoRAs of a pipeline, under sd-scripts' names, with an alpha for every layer."""
    tensors = {}
    second = getattr(pipe, "text_encoder_2", None) is not None
    prefixes = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_" if second else "lora_te_",
        "text_encoder_2": "lora_te2_",
    }
    for part, prefix in prefixes.items():
        for path, module in getattr(pipe, part).named_modules() if getattr(pipe, part, None) is not None else ():
            if not hasattr(module, "lora_A"):
                continue
            name = path if part == "unet" else f"text_model.{path.removeprefix('text_model.')}"
            name = prefix + (sgm_name(pipe, path) if sgm and part == "unet" else name).replace(".", "_")
            tensors[f"{name}.lora_down.weight"] = module.lora_A["default"].weight.detach().clone()
            tensors[f"{name}.lora_up.weight"] = module.lora_B["default"].weight.detach().clone()
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
    return tensors


def sgm_name(pipe, path):
    """The one name of a layer that begins as Stability AI's blocks do."""
    names = LayerNames(pipe, "unet")._paths[""]
    clean = path.replace(".base_layer", "")
    found = [name for name, other in names.items() if other == clean and name.startswith(("input", "middle", "output"))]
    return found[0] if found else clean


@pytest.fixture(scope="session")
def xl_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "xl"
    torch.manual_seed(0)
    tiny_families.stable_diffusion_xl().save_pretrained(folder)
    return folder


# --- LoRA ---


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_a_lora_of_diffusers_predicts_as_in_diffusers(base_dir, xl_dir, tmp_path, family):
    folder = base_dir if family == "sd" else xl_dir
    path = save_lora(lora_pipe(folder), tmp_path)
    reference = load_base(folder, device="cpu")
    reference.pipeline.load_lora_weights(path)
    found = inspect(path)
    base, _ = customized(found, folder, "cpu")
    assert_same_model(base, reference)
    assert_changed(base, load_base(folder, device="cpu"))
    assert (found.kind, found.tool, set(found.ranks), found.alphas) == ("LoRA", "diffusers", {4}, (2,))
    assert list(found.layers) == ["unet", "text_encoder", "text_encoder_2"][: 2 if family == "sd" else 3]
    assert bare(base.network)


@pytest.mark.parametrize("kind", ["alpha", "patterns", "rslora", "dora", "bias"])
def test_a_folder_of_peft_predicts_as_in_peft(base_dir, tmp_path, kind):
    kinds: dict[str, dict[str, Any]] = {
        "alpha": {},
        "patterns": {"rank_pattern": {"conv1": 8}, "alpha_pattern": {"attn2.to_q": 3}},
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True},
        "bias": {"lora_bias": True, "target_modules": ["to_out.0", "conv1"]},
    }
    options: dict[str, Any] = {"r": 4, "lora_alpha": 2, "target_modules": UNET_LAYERS} | kinds[kind]
    check_peft(base_dir, tmp_path, LoraConfig(**options))


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig])
def test_lycoris_of_peft_predicts_as_in_peft(base_dir, tmp_path, config, effective):
    options = {"decompose_both": True, "decompose_factor": 4} if config is LoKrConfig and effective else {}
    config = config(r=2, alpha=6, target_modules=["to_q", "conv1"], use_effective_conv2d=effective, **options)
    assert check_peft(base_dir, tmp_path, config).kind == "LyCORIS"


def check_peft(base_dir, tmp_path, config):
    reference = load_base(base_dir, device="cpu")
    torch.manual_seed(4)
    model = get_peft_model(reference.pipeline.unet, config)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_", "hada_", "lokr_")):
            factors = 1 + 0.3 * torch.rand_like(parameter)
            parameter.data = parameter.data * factors if "magnitude" in name else torch.randn_like(parameter) / 2
    model.save_pretrained(tmp_path)
    found = inspect(tmp_path)
    base, _ = customized(found, base_dir, "cpu")
    assert_same_model(base, reference)
    assert_changed(base, load_base(base_dir, device="cpu"))
    assert found.tool == "PEFT"
    return found


@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize("algo", ["lora", "loha", "lokr", "full", "norms"])
@pytest.mark.parametrize("dora", [None, "rows", "columns"])
def test_lycoris_of_its_own_library_predicts_as_there(base_dir, tmp_path, algo, tucker, dora):
    """Where lycoris-lora is installed; nothing here needs it."""
    lycoris = pytest.importorskip("lycoris")
    reference = load_base(base_dir, device="cpu")
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Transformer2DModel", "ResnetBlock2D"]})
    options = {"algo": "lora", "train_norm": True} if algo == "norms" else {"algo": algo}
    options |= {"dora_wd": dora is not None, "wd_on_output": dora == "rows", "use_tucker": tucker}
    network = lycoris.create_lycoris(
        reference.network, 1.0, linear_dim=2, linear_alpha=6, conv_dim=2, conv_alpha=6, **options
    )
    network.apply_to()
    torch.manual_seed(4)
    for name, parameter in network.named_parameters():
        factors = 1 + 0.3 * torch.rand_like(parameter)
        change = torch.randn_like(parameter) * 0.05
        parameter.data = parameter.data * factors if "dora_scale" in name else parameter.data + change
    save_file({name: t.detach().clone() for name, t in network.state_dict().items()}, tmp_path / "x.safetensors")
    found = inspect(tmp_path / "x.safetensors")
    assert found.tool == "LyCORIS"
    base, _ = customized(found, base_dir, "cpu")
    assert_same_model(base, reference)
    assert_changed(base, load_base(base_dir, device="cpu"))


def test_folders_of_peft_for_two_parts(base_dir, tmp_path):
    reference = load_base(base_dir, device="cpu")
    for part, layers in {"unet": UNET_LAYERS, "text_encoder": TEXT_LAYERS}.items():
        config = LoraConfig(r=2, lora_alpha=6, target_modules=layers, init_lora_weights=False)
        get_peft_model(getattr(reference.pipeline, part), config).save_pretrained(tmp_path / part)
    found = inspect(tmp_path)
    assert_same_model(customized(found, base_dir, "cpu")[0], reference)
    assert found.layers.keys() == {"unet", "text_encoder"}


@pytest.mark.parametrize("family", ["sd", "xl"])
@pytest.mark.slow
def test_a_lora_of_sd_scripts_predicts_as_in_diffusers(base_dir, xl_dir, tmp_path, family):
    folder = base_dir if family == "sd" else xl_dir
    tensors = kohya_tensors(lora_pipe(folder), sgm=family == "xl")
    words = {"10_sks cat": {"sks": 3}}
    said = {"ss_steps": "700", "ss_tag_frequency": json.dumps(words), "ss_sd_model_name": "v1-5.safetensors"}
    save_file(tensors, tmp_path / "my-000010.safetensors", metadata=said)
    found = inspect(tmp_path / "my-000010.safetensors")
    assert (found.tool, found.step, found.trigger, found.class_noun) == ("sd-scripts", 700, "sks cat", "cat")
    assert (found.base, found.alphas, found.ranks.keys()) == ("v1-5.safetensors", (2,), {4})
    reference = load_base(folder, device="cpu")
    reference.pipeline.load_lora_weights(tmp_path, weight_name="my-000010.safetensors")
    assert_same_model(customized(found, folder, "cpu")[0], reference)


@pytest.mark.slow
def test_one_lora_under_the_names_of_every_tool(base_dir, tmp_path):
    pipe = lora_pipe(base_dir)
    kohya = kohya_tensors(pipe)
    unet = {key.removeprefix("lora_unet_"): t for key, t in kohya.items() if key.startswith("lora_unet_")}
    paths = {path.replace(".", "_"): path for path, module in pipe.unet.named_modules() if hasattr(module, "lora_A")}
    layers = {key.split(".")[0] for key in unet}
    old = {layer: paths[layer].replace(".to_", ".processor.to_").replace("to_out.0", "to_out") for layer in layers}
    dotted = [("down", "up"), ("lora.down", "lora.up"), ("lora_A", "lora_B")]
    versions: dict[str, dict[str, tuple[str, ...]]] = {
        "sd-scripts": {
            f"lora_unet_{layer}": (f"lora_unet_{layer}.lora_down", f"lora_unet_{layer}.lora_up") for layer in layers
        },
        "Stability": {
            f"lora_unet_{layer}": tuple(
                f"lora_unet_{sgm_name(pipe, paths[layer])}.lora_{end}" for end in ("down", "up")
            )
            for layer in layers
        },
        "ComfyUI": {layer: tuple(f"diffusion_model.{paths[layer]}.{end}" for end in dotted[2]) for layer in layers},
        "diffusers": {layer: tuple(f"unet.{paths[layer]}.{end}" for end in dotted[1]) for layer in layers},
        "first diffusers": {
            layer: tuple(
                f"{old[layer]}_lora.{end}" if "processor" in old[layer] else f"{old[layer]}.{'lora.' + end}"
                for end in dotted[0]
            )
            for layer in layers
        },
        "PEFT": {layer: tuple(f"base_model.model.{paths[layer]}.{end}" for end in dotted[2]) for layer in layers},
    }
    predictions = []
    for name, version in versions.items():
        tensors = {}
        for layer, (down, up) in version.items():
            layer = layer.removeprefix("lora_unet_")
            tensors[f"{down}.weight"] = unet[f"{layer}.lora_down.weight"]
            tensors[f"{up}.weight"] = unet[f"{layer}.lora_up.weight"]
        save_file(tensors, tmp_path / "one.safetensors")
        found = inspect(tmp_path / "one.safetensors")
        assert found.layers == {"unet": len(layers)}, name
        predictions.append(predict(customized(found, base_dir, "cpu")[0]))
    assert all(torch.equal(predictions[0], other) for other in predictions[1:])
    assert (predictions[0] - predict(load_base(base_dir, device="cpu"))).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_lora_of_a_transformer(tmp_path, name):
    torch.manual_seed(0)
    pipe = tiny_families.stable_diffusion_3() if name == "sd3" else tiny_families.flux()
    pipe.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "add_v_proj", "to_out.0"], init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    layers = {"transformer_lora_layers": get_peft_model_state_dict(pipe.transformer)}
    type(pipe).save_lora_weights(tmp_path, **layers, **_collate_lora_metadata({"transformer": pipe.transformer}))
    reference = load_base(tmp_path / "base", device="cpu")
    reference.pipeline.load_lora_weights(tmp_path / "pytorch_lora_weights.safetensors")
    found = inspect(tmp_path)
    assert_same_model(customized(found, tmp_path / "base", "cpu")[0], reference)
    assert "of the transformer" in found.touches


# --- laws ---


def test_our_own_lora_predicts_as_our_adapter(base_dir, base, concept, tmp_path):
    adapter = changed(base, concept, "lora")
    save_adapter(adapter, tmp_path / "own.safetensors", base)
    own = inspect(tmp_path / "own.safetensors")
    assert (own.kind, own.trigger, own.class_noun) == ("infusion adapter", "<my-cat>", "cat")
    with pytest.raises(UserError, match="load it with load_adapter"):
        customized(own, base_dir)
    tensors = load_file(tmp_path / "own.safetensors")
    save_file(tensors, tmp_path / "stripped.safetensors")
    flat = {}
    for name, tensor in tensors.items():
        layer, matrix = name.removeprefix("unet.").removesuffix(".weight").rsplit(".", 1)
        ending = {"lora_A": "lora_down", "lora_B": "lora_up"}[matrix]
        flat[f"lora_unet_{layer.replace('.', '_')}.{ending}.weight"] = tensor
    save_file(flat, tmp_path / "flat.safetensors")
    words = {"my-cat": adapter.words}
    prompts = ["a <my-cat>", "a dog"]
    with base.customized(adapter) as denoiser, torch.no_grad():
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).repeat(2, 1, 1, 1)
        expected = denoiser.predict(latents, torch.tensor(400), base.encode(prompts, words))
    for name in ("stripped", "flat"):
        read, _ = customized(inspect(tmp_path / f"{name}.safetensors"), base_dir, "cpu")
        torch.testing.assert_close(predict(read, prompts, words), expected, atol=2e-5, rtol=1e-4)


def test_without_strength_it_is_the_base(base_dir, tmp_path):
    found = inspect(save_lora(lora_pipe(base_dir, use_dora=True), tmp_path))
    base = load_base(base_dir, device="cpu")
    none, half, whole, double = (customized(found, base_dir, "cpu", scale=scale)[0] for scale in (0, 0.5, 1, 2))
    assert torch.equal(predict(none), predict(base))
    weights = [model.network.conv_in.weight for model in (none, base)]
    assert torch.equal(*weights)
    name = "down_blocks.0.resnets.0.conv1.weight"
    there, halfway, changed_, twice = (m.network.get_parameter(name) for m in (base, half, whole, double))
    torch.testing.assert_close(halfway - there, (changed_ - there) / 2, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(twice - there, (changed_ - there) * 2, atol=1e-6, rtol=1e-4)


def test_half_precision(base_dir, tmp_path):
    found = inspect(save_lora(lora_pipe(base_dir), tmp_path))
    exact, rough = (customized(found, base_dir, "cpu", dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(predict(rough).float(), predict(exact), atol=0.1, rtol=0.1)


def test_nothing_is_left_out_in_silence(base_dir, tmp_path):
    tensors = kohya_tensors(lora_pipe(base_dir))
    save_file(tensors | {"bundle_emb.x.string_to_param.*": torch.ones(1, 16)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="what it does is unknown"):
        inspect(tmp_path / "a.safetensors")
    save_file({key.replace("resnets", "resnots"): t for key, t in tensors.items()}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"the base has no layer .*resnots"):
        customized(inspect(tmp_path / "b.safetensors"), base_dir, "cpu")
    del tensors[next(key for key in tensors if key.endswith("lora_up.weight"))]
    save_file(tensors, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="does not fit the layer of the base"):
        customized(inspect(tmp_path / "c.safetensors"), base_dir, "cpu")


def test_a_lora_for_another_model_is_refused(base_dir, tmp_path):
    found = inspect(save_lora(lora_pipe(base_dir), tmp_path))
    with pytest.raises(UserError, match=r"pytorch_lora_weights.*made for another model"):
        customized(found, "toybox", "cpu")


# --- Textual Inversion ---


def save_words(kind, vectors, tmp_path):
    a1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "my-word", "step": 499}
    if kind == "safetensors":
        save_file({"<my-word>": vectors}, tmp_path / "learned_embeds.safetensors")
        return tmp_path
    if kind == "emb_params":
        save_file({"emb_params": vectors}, tmp_path / "my-word.safetensors")
        return tmp_path / "my-word.safetensors"
    if kind == "learned_embeds.bin":
        torch.save({"<my-word>": vectors[0] if len(vectors) == 1 else vectors}, tmp_path / kind)
        return tmp_path
    if kind == "bare":
        torch.save(vectors, tmp_path / "my-word.bin")
        return tmp_path / "my-word.bin"
    if kind == "ParameterDict":
        a1111["string_to_param"] = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    torch.save(a1111, tmp_path / "my-word.pt")
    return tmp_path / "my-word.pt"


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["safetensors", "emb_params", "learned_embeds.bin", "bare", "A1111", "ParameterDict"])
def test_words_of_every_tool(base_dir, tmp_path, kind, count):
    vectors = torch.randn(count, 16, generator=torch.Generator().manual_seed(5))
    found = inspect(save_words(kind, vectors, tmp_path))
    base, words = customized(found, base_dir, "cpu")
    assert found.kind == "textual inversion"
    assert words and found.trigger and found.trigger.strip("<>") == "my-word"
    reference = load_base(base_dir, device="cpu")
    reference.pipeline.load_textual_inversion({"<my-word>": vectors}, token="<my-word>")
    prompt = reference.pipeline.maybe_convert_prompt("a <my-word> on it", reference.tokenizer)
    assert prompt == f"a {words} on it"
    told = base.encode(["a <it> on it"], {"it": words})
    assert len(told.concept_tokens[0]["it"]) == count
    expected = reference.pipeline.encode_prompt("a <my-word> on it", "cpu", 1, False)[0]
    assert torch.equal(told.text_states, expected)
    assert torch.equal(predict(base), predict(load_base(base_dir, device="cpu")))  # prompts without the word
    assert base.text_encoder.config.vocab_size == len(base.tokenizer)
    if kind == "A1111":
        assert (found.tool, found.step) == ("A1111", 499)


def test_words_of_two_text_models(xl_dir, base_dir, tmp_path):
    vectors = {"clip_l": torch.randn(2, 16), "clip_g": torch.randn(2, 24)}
    save_file(vectors, tmp_path / "my-word.safetensors")
    found = inspect(tmp_path / "my-word.safetensors")
    base, words = customized(found, xl_dir, "cpu")
    assert words == "<my-word> <my-word>_1"
    told = base.encode(["a <it> on it"], {"it": words})
    plain = load_base(xl_dir, device="cpu").encode(["a cat on it"])
    assert (told.text_states - plain.text_states)[..., :16].abs().max() > 1e-3
    assert (told.text_states - plain.text_states)[..., 16:].abs().max() > 1e-3
    with pytest.raises(UserError, match="its vectors are for the text encoder, the second text encoder"):
        customized(found, base_dir, "cpu")


def test_words_of_another_width_are_refused(tmp_path):
    found = inspect(save_words("safetensors", torch.randn(1, 16), tmp_path))
    with pytest.raises(UserError, match="a width of 16, and the text encoder of the base reads 160"):
        customized(found, "toybox", "cpu")
    with pytest.raises(UserError, match=r"no strength of 0\.5"):
        customized(found, "toybox", "cpu", scale=0.5)


# --- Custom Diffusion ---


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("queries", [False, True])
def test_custom_diffusion_predicts_as_in_diffusers(base_dir, tmp_path, suffix, queries):
    reference = load_base(base_dir, device="cpu")
    unet = reference.pipeline.unet
    processors = {}
    for name, module in unet.named_modules():
        if name.endswith(".attn2"):
            own = CustomDiffusionAttnProcessor(True, queries, module.to_q.in_features, module.to_k.in_features)
            torch.nn.init.normal_(own.to_k_custom_diffusion.weight, std=0.3)
            torch.nn.init.normal_(own.to_v_custom_diffusion.weight, std=0.3)
            processors[f"{name}.processor"] = own
        elif name.endswith(".attn1"):
            processors[f"{name}.processor"] = CustomDiffusionAttnProcessor(False, False)
    unet.set_attn_processor(processors)
    unet.save_attn_procs(tmp_path, safe_serialization=suffix == "safetensors")
    vector = torch.randn(16)
    torch.save({"<new1>": vector}, tmp_path / "<new1>.bin")
    reference.pipeline.load_textual_inversion({"<new1>": vector})
    found = inspect(tmp_path)
    base, words = customized(found, base_dir, "cpu")
    assert (found.kind, found.trigger, words) == ("Custom Diffusion", "<new1>", "<new1>")
    options = {"prompts": ["a photo of a <it> cat"], "words": {"it": words}}
    assert_same_model(base, reference, **options)
    assert_changed(base, load_base(base_dir, device="cpu"))
    assert base.text_layers


# --- whole weights ---


def test_a_fine_tuned_pipeline_is_a_base(base_dir, tmp_path, pipe):
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(1.05)
    pipe.save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "README.md").write_text(
        "---\nbase_model: some/model\ninstance_prompt: a photo of sks cat\n---\n# A model\n"
    )
    found = inspect(tmp_path / "tuned")
    assert (found.kind, found.trigger, found.class_noun) == ("pipeline", "sks cat", "cat")
    assert (found.base, found.touches) == ("some/model", "everything")
    base, words = customized(found, base_dir, "cpu")
    assert words == "sks cat"
    assert torch.equal(predict(base), predict(load_base(tmp_path / "tuned", device="cpu")))
    assert torch.equal(
        predict(customized(found, base_dir, "cpu", scale=0)[0]), predict(load_base(base_dir, device="cpu"))
    )


@pytest.mark.parametrize("sharded", [False, True])
def test_fine_tuned_parts(base_dir, tmp_path, pipe, sharded):
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(2)
        pipe.text_encoder.get_input_embeddings().weight.mul_(1.5)
    folder = tmp_path / "checkpoint-500"
    pipe.unet.save_pretrained(folder / "unet", max_shard_size="50KB" if sharded else "1GB")
    pipe.text_encoder.save_pretrained(folder / "text_encoder")
    found = inspect(folder)
    assert (found.kind, found.step) == ("fine-tuned weights", 500)
    assert len(found.files) > 2 if sharded else len(found.files) == 2
    base, _ = customized(found, base_dir, "cpu")
    assert torch.equal(predict(base), predict(base.from_pipeline(pipe)))
    assert torch.equal(
        predict(customized(inspect(folder / "unet"), base_dir, "cpu")[0], [""]).isfinite().all(), torch.tensor(True)
    )
    with pytest.raises(UserError, match="it is another model"):
        customized(found, "toybox", "cpu")


def test_a_single_file_checkpoint_is_recognised(tmp_path):
    names = ("model.diffusion_model.out.0.weight", "first_stage_model.x", "cond_stage_model.y")
    save_file({name: torch.ones(2) for name in names}, tmp_path / "model.safetensors")
    assert inspect(tmp_path / "model.safetensors").kind == "single-file checkpoint"


# --- what else there is ---


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lora_unet_x.oft_blocks", "looks like OFT"),
        ("control_model.x.weight", "looks like a ControlNet"),
        ("model.diffusion_model.x.weight", "looks like a network alone"),
        ("something.weight", 'holds 1 tensors, "something.weight" for one, of nothing that is known here'),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, what):
    save_file({name: torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=f"{what}.*can be read"):
        inspect(tmp_path / "x.safetensors")


def test_a_folder_of_nothing(tmp_path):
    with pytest.raises(UserError, match="holds nothing that is known here"):
        inspect(tmp_path)
    with pytest.raises(UserError, match="There is no file or folder"):
        inspect(tmp_path / "x")
    for name in ("a", "b"):
        save_file({"<x>": torch.ones(1, 4)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"holds 2 weight files \(a.safetensors, b.safetensors\)"):
        inspect(tmp_path)


def test_repositories_on_the_hub(stand_in, base_dir, tmp_path, pipe):
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q"], init_lora_weights=False)
    get_peft_model(load_base(base_dir, device="cpu").pipeline.unet, config).save_pretrained(tmp_path / "peft")
    pipe.save_pretrained(tmp_path / "tuned")
    for name in ("peft", "tuned"):
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        content = {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in files}
        stand_in.add(f"jane/{name}", content | {"other/x.bin": b"not wanted"})
    for name in ("jane/peft", "jane/peft/adapter_model.safetensors"):
        there = customized(inspect(name), base_dir, "cpu")[0]
        assert torch.equal(predict(there), predict(customized(inspect(tmp_path / "peft"), base_dir, "cpu")[0]))
    found = inspect("jane/tuned")
    assert found.kind == "pipeline"
    assert torch.equal(predict(customized(found, base_dir, "cpu")[0]), predict(load_base(base_dir, device="cpu")))
    assert not any("other" in request for request in stand_in.requests if "peft" in request)
    with pytest.raises(UserError, match="There is no file or folder jane/none here, and none was got from the Hub"):
        inspect("jane/none")


def test_the_words_come_from_what_is_said(tmp_path):
    tensors = {"unet.a.to_q.lora_A.weight": torch.ones(2, 4), "unet.a.to_q.lora_B.weight": torch.ones(4, 2)}
    for said, expected in [
        ({"modelspec.trigger_phrase": "ohwx \x1b[31mdog"}, ("ohwx [31mdog", None, None, None)),
        (
            {"software": '{"name": "ai-toolkit"}', "training_info": '{"step": 250, "epoch": 3}'},
            (None, None, 250, "ai-toolkit"),
        ),
        ({"ss_tag_frequency": '{"5_a": {}, "5_b": {}}', "ss_steps": "-4"}, (None, None, None, "sd-scripts")),
        ({"ss_tag_frequency": "[" * 9999, "ot_branch": "x"}, (None, None, None, "OneTrainer")),
    ]:
        save_file(tensors, tmp_path / "x.safetensors", metadata=said)
        found = inspect(tmp_path / "x.safetensors")
        assert (found.trigger, found.class_noun, found.step, found.tool if expected[3] else None) == expected


def test_the_checkpoints_of_a_run(tmp_path):
    tensors = {"unet.a.to_q.lora_A.weight": torch.ones(2, 4), "unet.a.to_q.lora_B.weight": torch.ones(4, 2)}
    for step in (1000, 500):
        (tmp_path / "diffusers" / f"checkpoint-{step}").mkdir(parents=True)
        save_file(tensors, tmp_path / "diffusers" / f"checkpoint-{step}" / "pytorch_lora_weights.safetensors")
    save_file(tensors, tmp_path / "diffusers" / "pytorch_lora_weights.safetensors")
    assert [found.step for found in checkpoints(tmp_path / "diffusers")] == [500, 1000, None]
    runs: dict[str, dict[str, int | None]] = {
        "sd-scripts": {"my-cat-000010": 10, "my-cat-000002": 2, "my-cat": None},
        "ai-toolkit": {"cat_000000500": 500, "cat_000001000": 1000, "cat": None},
        "by steps": {"cat-step00000020": 20, "cat-step00000300": 300},
        "words": {"learned_embeds-steps-500": 500, "learned_embeds-steps-1000": 1000},
    }
    for folder, names in runs.items():
        (tmp_path / folder).mkdir()
        for name in names:
            save_file(tensors, tmp_path / folder / f"{name}.safetensors")
        expected = sorted(names.values(), key=lambda step: step or 9**9)
        assert [found.step for found in checkpoints(tmp_path / folder)] == expected
    save_file(tensors, tmp_path / "words" / "other.safetensors")
    with pytest.raises(UserError, match=r"several runs \(learned_embeds, other\)"):
        checkpoints(tmp_path / "words")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoints"):
        checkpoints(tmp_path / "empty")
