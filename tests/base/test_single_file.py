"""A checkpoint in one file is the model of the folder it was made from."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from test_families import predict, random_adapter
from tiny_families import tiny
from transformers import CLIPTextModelWithProjection
from typer.testing import CliRunner

from infusion.base import load_base
from infusion.base.model import same_base
from infusion.cli.main import app
from infusion.errors import UserError
from infusion.methods.adapter_file import load_adapter, save_adapter

# What the original Stable Diffusion calls the parts of a block.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def renamed(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\g<1>{theirs}.", name)
    return name


def unet_name(name: str, layers: int) -> str:
    """In the original, blocks of one kind are counted through: `layers` and a change of size, level by level."""
    step = layers + 1
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name):
        way, level, kind, number, rest = found.groups()
        at = int(level) * step + int(number)
        if kind == "downsamplers":
            return f"input_blocks.{(int(level) + 1) * step}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{at + layers}.2.{rest}"
        block = f"input_blocks.{at + 1}" if way == "down" else f"output_blocks.{at}"
        return f"{block}.0.{renamed(rest, RESNET)}" if kind == "resnets" else f"{block}.1.{rest}"
    name = renamed(name, UNET)
    return renamed(name, RESNET) if name.startswith(("middle_block.0", "middle_block.2")) else name


def vae_name(name: str, levels: int) -> str:
    """The original counts the decoder's levels from the finest."""
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    name = name.replace(".upsamplers.0", ".upsample").replace("resnets", "block") if "decoder.up." in name else name
    return renamed(name, VAE)


OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers": "transformer.resblocks",
    "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip_weights(text_encoder: CLIPTextModelWithProjection) -> dict[str, torch.Tensor]:
    """The weights of a text model as OpenCLIP names them; queries, keys and values are one matrix there."""
    theirs = text_encoder.state_dict()
    weights = {"text_projection": theirs.pop("text_projection.weight").T}
    for name in [name for name in theirs if ".q_proj." in name]:
        three = torch.cat([theirs.pop(name.replace(".q_proj.", f".{kind}_proj.")) for kind in "qkv"])
        theirs[name.replace(".q_proj.", ".in_proj_")] = three
    short = {name.removeprefix("text_model."): weight for name, weight in theirs.items()}
    return weights | {renamed(f"{name}.", OPEN_CLIP).rstrip("."): weight for name, weight in short.items()}


def original_weights(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline) -> dict[str, torch.Tensor]:
    """The weights of a Stable Diffusion under the names that it was published with."""
    unet, vae = pipeline.unet, pipeline.vae
    weights = {
        f"model.diffusion_model.{unet_name(name, unet.config.layers_per_block)}": weight
        for name, weight in unet.state_dict().items()
    }
    for name, weight in vae.state_dict().items():
        theirs = vae_name(name, len(vae.config.block_out_channels))
        is_attention = ".attn_1." in theirs and weight.dim() == 2
        weights[f"first_stage_model.{theirs}"] = weight[..., None, None] if is_attention else weight
    is_xl = isinstance(pipeline, StableDiffusionXLPipeline)
    first = "conditioner.embedders.0.transformer" if is_xl else "cond_stage_model.transformer"
    for name, weight in pipeline.text_encoder.state_dict().items():
        weights[f"{first}.text_model.{name.removeprefix('text_model.')}"] = weight
    if is_xl:
        for name, weight in open_clip_weights(pipeline.text_encoder_2).items():
            weights[f"conditioner.embedders.1.model.{name}"] = weight
    return {name: weight.contiguous() for name, weight in weights.items()}


@pytest.fixture(scope="module")
def single_file(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(original_weights(StableDiffusionPipeline.from_pretrained(base_dir)), path)
    return path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and nothing in the cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))


def test_it_is_the_folder_it_was_made_from(single_file, base_dir, base):
    again = load_base(single_file, device="cpu", config=base_dir)
    assert again.digest() == base.digest() and again.id == str(single_file)
    assert torch.equal(predict(again, ["a cat", "a dog"]), predict(base, ["a cat", "a dog"]))
    assert not any(weight.requires_grad for weight in again.network.parameters())


def test_stable_diffusion_xl_too(tmp_path):
    pipeline = tiny("sdxl")
    pipeline.save_pretrained(tmp_path / "sdxl")
    save_file(original_weights(pipeline), tmp_path / "sdxl.safetensors")
    base, again = (
        load_base(tmp_path / "sdxl", "cpu"),
        load_base(tmp_path / "sdxl.safetensors", "cpu", config=tmp_path / "sdxl"),
    )
    assert again.digest() == base.digest()
    assert torch.equal(predict(again, ["a cat", "a dog"]), predict(base, ["a cat", "a dog"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_another_precision_it_is_the_same_base(single_file, base_dir, base, dtype):
    again = load_base(single_file, "cpu", dtype, base_dir)
    assert again.network.dtype == again.text_encoder.dtype == dtype
    assert same_base(again.fingerprint(), base.fingerprint())


def test_an_adapter_goes_between_the_file_and_the_folder(single_file, base_dir, base, concept, tmp_path):
    path = tmp_path / "my-cat.safetensors"
    adapter = random_adapter(base, concept)
    save_adapter(adapter, path, base)
    again = load_base(single_file, device="cpu", config=base_dir)
    moved = predict(again, ["a <my-cat>"], load_adapter(path, again))
    expected = predict(base, ["a <my-cat>"], adapter)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)
    assert (moved - predict(again, ["a cat"])).abs().max() > 1e-2


def test_what_is_no_base_is_refused(single_file, base_dir, base, concept, tmp_path):
    def refused(path, told, config=base_dir):
        with pytest.raises(UserError, match=told) as error:
            load_base(path, device="cpu", config=config)
        assert "\n" not in str(error.value)

    refused(tmp_path / "missing.safetensors", "There is no file")
    refused(tmp_path / "missing.ckpt", "There is no file")
    (tmp_path / "notes.safetensors").write_text("a cat")
    refused(tmp_path / "notes.safetensors", "not a readable")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}")
    refused(tmp_path / "model.ckpt", "may run code")
    (tmp_path / "cut.safetensors").write_bytes(single_file.read_bytes()[:1000])
    refused(tmp_path / "cut.safetensors", "not a readable")
    (tmp_path / "cut-later.safetensors").write_bytes(single_file.read_bytes()[:-1000])
    refused(tmp_path / "cut-later.safetensors", "not a readable")
    save_adapter(random_adapter(base, concept), tmp_path / "my-cat.safetensors", base)
    refused(tmp_path / "my-cat.safetensors", "holds no text-to-image model")
    lora = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    refused(tmp_path / "lora.safetensors", "LoRAs, adapters, autoencoders")
    refused(single_file, "which cannot be read", config=tmp_path / "nowhere")
    refused(base_dir, "brings its own configuration")


@pytest.mark.parametrize(
    "part, prefix",
    [
        ("AutoencoderKL", "first_stage_model"),
        ("CLIPTextModel", "cond_stage_model"),
        ("some of its weights", "model.diffusion_model.out.2.bias"),
        ("some of its weights", "cond_stage_model.transformer.text_model.final_layer_norm"),
    ],
)
def test_a_file_without_a_part_is_refused(single_file, base_dir, tmp_path, part, prefix):
    weights = {name: weight for name, weight in load_file(single_file).items() if not name.startswith(prefix)}
    save_file(weights, tmp_path / "unfinished.safetensors")
    with pytest.raises(UserError, match=f"no whole model: .*{part}.* Give a file with all parts"):
        load_base(tmp_path / "unfinished.safetensors", device="cpu", config=base_dir)


def test_a_configuration_of_another_model_is_refused(single_file, tmp_path):
    tiny("sdxl").save_pretrained(tmp_path / "sdxl")
    with pytest.raises(UserError, match="could not be read as a model like"):
        load_base(single_file, device="cpu", config=tmp_path / "sdxl")
    tiny("pixart-sigma").save_pretrained(tmp_path / "pixart")
    with pytest.raises(UserError, match="PixArtSigmaPipeline, which is not read from one file"):
        load_base(single_file, device="cpu", config=tmp_path / "pixart")


def test_without_network_it_says_what_to_give(single_file, no_hub):
    with pytest.raises(UserError, match=r"stable-diffusion-v1-5/stable-diffusion-v1-5.*--base-config, config="):
        load_base(single_file, device="cpu")


@pytest.mark.slow
def test_every_command_takes_it(single_file, base_dir, concept, tmp_path, monkeypatch):
    from infusion.concepts.sheet import write_folder

    monkeypatch.chdir(tmp_path)
    write_folder(concept, tmp_path / "cats")
    given = ["--base", str(single_file), "--base-config", str(base_dir), "--device", "cpu"]
    for words in (
        ["prepare", "cats"],
        ["train", "cats", "--max-train-steps", "2", "-o", "my-cat.safetensors"],
        ["generate", "a <my-cat>", "--concept", "my-cat.safetensors", "--num-inference-steps", "2"],
    ):
        result = CliRunner().invoke(app, [*words, *given])
        assert result.exit_code == 0, (result.output, result.exception)
    assert load_adapter("my-cat.safetensors", load_base(base_dir, device="cpu")).concept_name == "my-cat"


def test_generating_again_takes_the_base_of_the_adapter(single_file, base_dir, base, concept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base.id = str(single_file)
    save_adapter(random_adapter(base, concept), "my-cat.safetensors", base)
    words = ["generate", "a <my-cat>", "--concept", "my-cat.safetensors", "--num-inference-steps", "2"]
    result = CliRunner().invoke(app, [*words, "--base-config", str(base_dir), "--device", "cpu"])
    assert result.exit_code == 0, (result.output, result.exception)


def test_evaluate_takes_it(single_file, base, concept, tmp_path):
    """As far as loading: that it cannot be loaded so says that it was tried."""
    save_adapter(random_adapter(base, concept), tmp_path / "my-cat.safetensors", base)
    words = ["audit", tmp_path / "my-cat.safetensors", "--base", single_file, "--base-config", tmp_path / "nowhere"]
    result = CliRunner().invoke(app, [*map(str, words), "-o", str(tmp_path / "page.html")])
    assert isinstance(result.exception, UserError) and f'looked for in "{tmp_path / "nowhere"}"' in str(
        result.exception
    )
