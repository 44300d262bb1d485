"""A folder or hub id in diffusers' layout, or a single file -> Base: the frozen model; encode, predict, fingerprint."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import hexdigits
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from infusion.base.customization import Customization, attached
from infusion.base.denoiser import Conditioning, Denoiser
from infusion.base.families import Family, StableDiffusion, TextLayer, family_of, unwrapped
from infusion.base.noise_schedule import noise_schedule, schedule_facts
from infusion.base.prompts import parse_prompt
from infusion.base.single_file import is_single_file, load_single_file
from infusion.errors import UserError, first_line
from infusion.toybox import FOUNDATION_DIR, TOYBOX

_FINGERPRINT_WEIGHTS = 64


@dataclass(eq=False)
class Base:
    """A frozen text-to-image model: a diffusers pipeline whose parts are shared, not copied. A `Denoiser`.

    id: its name. family: what kind of model it is. scheduler: any of diffusers'; the pipeline's own at first.
    """

    id: str
    family: Family
    pipeline: Any
    scheduler: Any

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> "Base":
        """The base model inside a diffusers pipeline.

        Raises:
            UserError: the pipeline is of no family that can be customized, or lacks a part.
        """
        family = family_of(pipeline)
        if getattr(pipeline, family.network).device.type == "meta":
            raise UserError(
                "This pipeline moves weights layer by layer (sequential CPU offload), so they cannot be customized: "
                "use enable_model_cpu_offload(), or keep the model on one device."
            )
        name = pipeline.config.get("_name_or_path") or type(pipeline).__name__
        return cls(TOYBOX if Path(name) == FOUNDATION_DIR else str(name), family, pipeline, pipeline.scheduler)

    @property
    def network(self) -> Any:
        """The denoiser: a UNet or a transformer."""
        return unwrapped(getattr(self.pipeline, self.family.network))

    @property
    def vae(self) -> Any:
        return self.pipeline.vae

    @property
    def tokenizer(self) -> Any:
        return self.pipeline.tokenizer

    @property
    def text_encoder(self) -> Any:
        return self.pipeline.text_encoder

    @property
    def text_layers(self) -> dict[str, TextLayer]:
        """Every layer of the network that reads text, by module path."""
        return self.family.text_layers(self.network)

    @property
    def _parts(self) -> list[Any]:
        """Everything with weights."""
        encoders = [getattr(self.pipeline, name) for name in self.family.text_encoders]
        return [part for part in (*encoders, self.network, self.vae) if part is not None]

    def freeze(self) -> None:
        """No weight of the base is trained from here on."""
        for part in self._parts:
            part.requires_grad_(False).eval()

    @cached_property
    def noise_schedule(self) -> Any:
        """How noise is added in training, whichever scheduler samples: a DDPMScheduler, or a `FlowSchedule`."""
        return noise_schedule(self.scheduler)

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def latent_dtype(self) -> torch.dtype:
        """Precision in which latents are sampled."""
        return torch.float32 if self.family.samples_in_fp32 else self.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latents of an image of the size the model was made for."""
        return self.family.latent_shape(self.pipeline)

    @property
    def size_px(self) -> int:
        """Side of the images the model was made for, in pixels."""
        return self.latent_shape[1] * self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        return self.pipeline.vae_scale_factor

    @property
    def step_px(self) -> int:
        """Sides of images are multiples of this many pixels, so that the network can halve or patch their latents."""
        return self.pixels_per_latent * self.family.latent_step(self.network)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], words: Mapping[str, str] | None = None) -> Conditioning:
        """Text states of the prompts, and where each concept stands in them.

        Args:
            prompts: B prompts; `<name>` stands for the concept called name.
            words: what the text model reads for a concept, by concept name: its class noun.

        Raises:
            UserError: a placeholder names no concept, or stands beyond the last token the model reads.
        """
        return self.family.encode(self.pipeline, [parse_prompt(prompt, words or {}) for prompt in prompts])

    @torch.no_grad()
    def encode_negative(self, prompts: Sequence[str]) -> Conditioning:
        """Text states of the prompts that classifier-free guidance moves away from."""
        return self.family.encode_negative(self.pipeline, [parse_prompt(prompt, {}) for prompt in prompts])

    def read_tokens(self, token_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Text states [B, T, C] of token ids [B, T], where there is one text model.

        Raises:
            UserError: the base is of another family than Stable Diffusion 1.x and 2.x.
        """
        family = self.as_stable_diffusion("a method that trains words")
        return family.read_tokens(self.pipeline, token_ids, attention_mask)

    def as_stable_diffusion(self, wanted_by: str) -> StableDiffusion:
        """The family, for what is there for Stable Diffusion 1.x and 2.x only.

        Raises:
            UserError: it is another.
        """
        if not isinstance(self.family, StableDiffusion):
            raise UserError(
                f'"{self.id}" is a model of the family {self.family.architecture}, and {wanted_by} works on Stable '
                "Diffusion 1.x and 2.x; infusion and dreambooth work on every family."
            )
        return self.family

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's prediction, of the kind that `noise_schedule` names; [B, C, H, W] in the latents' precision."""
        dtype = conditioning.text_states.dtype  # the network's; to ask the network walks all of it at every step
        inputs = self.family.inputs(self.pipeline, noisy_latents.to(dtype), timesteps, conditioning)
        output = self.network(**inputs, return_dict=False)[0]
        return self.family.prediction(output, noisy_latents).to(noisy_latents.dtype)

    @contextmanager
    def customized(self, *adapters: Customization) -> Iterator[Denoiser]:
        """The base with adapters, as a denoiser; leaving the block leaves no trace in the base."""
        with attached(self, adapters) as denoiser:
            yield denoiser

    def digest(self) -> str:
        """A hash of every weight and of the noise schedule, 16 hexadecimal digits: for results that depend on all."""
        schedule = json.dumps(schedule_facts(self.noise_schedule), sort_keys=True, default=str)
        digest = hashlib.sha256(schedule.encode())
        for part in self._parts:
            for name, tensor in sorted(part.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """64 weights of the keys where text is read, rounded to bfloat16, as hexadecimal digits.

        Unlike a hash it may be compared with a tolerance (`same_base`), so that the same model is recognised in another
        precision, and with the adapters of other tools beside it.
        """
        layers: list[Any] = [layer.attention.to_k for layer in self.text_layers.values()]
        weights = [getattr(layer, "base_layer", layer).weight.flatten() for layer in layers]
        picked = []
        for i in range(_FINGERPRINT_WEIGHTS):
            weight = weights[i % len(weights)]
            picked.append(weight[i * len(weight) // _FINGERPRINT_WEIGHTS].float().cpu())
        values = torch.stack(picked)
        return values.bfloat16().view(torch.uint16).numpy().astype(">u2").tobytes().hex()


def same_base(fingerprint: str, other: str) -> bool:
    """Whether two fingerprints (an even number of hexadecimal digits) are one model's, to within 1%."""

    def values(digits: str) -> Tensor:
        words = struct.unpack(f">{len(digits) // 4}H", bytes.fromhex(digits))
        return torch.tensor(words, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()

    if len(fingerprint) != len(other) or not all(digit in hexdigits for digit in fingerprint + other):
        return False
    return torch.allclose(values(fingerprint), values(other), rtol=0.01, atol=1e-7)


def load_base(
    name_or_path: str | Path = TOYBOX,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    config: str | Path | None = None,
) -> Base:
    """Load a base model: "toybox", a folder or hub id in diffusers' layout, or a checkpoint in one .safetensors file.

    Args:
        device: by default the first CUDA device, Apple's, or the CPU.
        dtype: precision in which the frozen weights are held.
        config: for one file: a folder or hub id in diffusers' layout whose configuration it has. By default diffusers'
            choice by the file's weights, which it reads from the Hub, or from its cache.

    Raises:
        UserError: nothing loadable is found there; a config is given for what is no file.
    """
    name = str(name_or_path)
    if config is not None and not is_single_file(name):
        raise UserError(f'"{name}" brings its own configuration: give another one for a .safetensors file only.')
    try:
        pipeline = _load_pipeline(str(FOUNDATION_DIR) if name == TOYBOX else name, dtype, config)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f'No base model could be loaded from "{name}": {first_line(error)} Give "{TOYBOX}", a folder or hub id '
            "in the diffusers layout (with a model_index.json), or a checkpoint in one .safetensors file."
        ) from error
    pipeline.vae.float()  # autoencoders overflow in fp16
    base = Base.from_pipeline(pipeline.to(device or _default_device()))
    base.id = name
    channels, there = base.latent_shape[0], base.vae.config.latent_channels
    if channels != there:
        raise UserError(
            f'"{name}" takes {channels} channels where its latents have {there}: it is an inpainting or '
            "editing model. Give a text-to-image model; adapters trained on it work in inpainting pipelines too."
        )
    base.freeze()
    return base


def _load_pipeline(path: str, dtype: torch.dtype, config: str | Path | None) -> Any:
    """Without the parts that only look at finished images."""
    if is_single_file(path):
        return load_single_file(path, None if config is None else str(config), dtype)
    unneeded = DiffusionPipeline.load_config(path).keys() & {"safety_checker", "feature_extractor", "image_encoder"}
    options: dict[str, Any] = dict.fromkeys(unneeded)
    if "safety_checker" in unneeded:
        options["requires_safety_checker"] = False
    return DiffusionPipeline.from_pretrained(path, dtype=dtype, **options)


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
