"""A tiny Stable Diffusion with random weights, real in every part, and tiny concepts."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub reads it: nothing waits for a network

import json
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from hub_stand_in import StandIn
from PIL import Image, ImageDraw
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from infusion.base import Base, load_base
from infusion.cli.main import main
from infusion.concepts.concept import Concept
from infusion.methods.adapter import Adapter
from infusion.methods.infusion import Infusion

torch.set_num_threads(1)

MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "t e", "d y</w>"]


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with a handful of merges: "cat" and "dog" are one token, other words several."""
    letters = sorted(ByteLevel.alphabet())
    merged = ["".join(merge.split()) for merge in MERGES]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(merge.split()) for merge in MERGES]
    return CLIPTokenizer(vocab, merges, model_max_length=32)  # type: ignore[arg-type]  # pairs are what it takes


def tiny_clip(width: int = 16, projected: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def tiny_vae(channels: int = 4, shift: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        shift_factor=shift,
    )


def tiny_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_clip(),
        tokenizer=tiny_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def clipseg_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPSeg with random weights, in the layout of CIDAS/clipseg-rd64-refined."""
    folder = tmp_path_factory.mktemp("segmenter") / "clipseg"
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPSegConfig(
        text_config=sizes | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 32},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor = {"do_resize": True, "do_normalize": True, "resample": 2, "size": 32} | statistics
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def pipe(base_dir: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base_dir)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def _loaded_base(base_dir: Path) -> Base:
    return load_base(base_dir, device="cpu")


@pytest.fixture
def base(_loaded_base: Base) -> Base:
    return deepcopy(_loaded_base)  # a copy takes half the time of loading


def picture(color: str, size: int = 16) -> tuple[Image.Image, Image.Image]:
    """A disc on grey, and its mask."""
    image, mask = Image.new("RGB", (size, size), "gray"), Image.new("L", (size, size), 0)
    box = (size // 4, size // 4, 3 * size // 4, 3 * size // 4)
    ImageDraw.Draw(image).ellipse(box, fill=color)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return image, mask


@pytest.fixture
def concept() -> Concept:
    images, masks = zip(*(picture(color) for color in ("red", "orange", "crimson")), strict=True)
    return Concept(
        name="my-cat",
        class_noun="cat",
        images=images,
        masks=masks,
        captions=(None,) * 3,
        sources=("1.png", "2.png", "3.png"),
        mask_sources=("given",) * 3,
    )


@pytest.fixture
def adapter(base: Base, concept: Concept) -> Adapter:
    """An adapter of random residuals: it changes every prediction it is asked to."""
    adapter = Infusion().adapter(base, concept)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=0.5)
    return adapter.eval()


def load_script(path: Path) -> ModuleType:
    """A script that is no module of the package, under a name of its own."""
    spec = spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`infusion ...` in an empty folder -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["infusion", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        return (code if isinstance(code, int) else 0), *capsys.readouterr()

    return run


def hub_reads_from(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Where the client of the Hub asks; it reads HF_ENDPOINT when it is imported."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A Hub on this machine, an empty cache and a token that may write."""
    from huggingface_hub import constants

    stand_in = StandIn()
    hub_reads_from(monkeypatch, stand_in.url)
    for name, value in {
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # its servers cannot be stood in for
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_writes")
    yield stand_in
    stand_in.close()
