"""A folder or hub id in Stable Diffusion's layout -> Base: the frozen model; encode, predict, fingerprint."""

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
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from infusion.base.cross_attention import cross_attentions
from infusion.base.customization import Customization, attached
from infusion.base.denoiser import Conditioning, Denoiser
from infusion.base.vocabulary import inverse_second_moment, typical_states
from infusion.errors import UserError, first_line
from infusion.prompts import parse_prompt, tokenize

TOYBOX = "toybox"
TOYBOX_DIR = Path(__file__).parents[1] / "toybox" / "foundation"
_FINGERPRINT_WEIGHTS = 64


@dataclass
class Base:
    """A frozen text-to-image model: the parts of a Stable Diffusion pipeline, and its name. A `Denoiser`.

    tokenizer: CLIPTokenizer. text_encoder: CLIPTextModel. unet: UNet2DConditionModel. vae: AutoencoderKL. scheduler:
    any of diffusers'.
    """

    id: str
    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    scheduler: Any

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> "Base":
        """The base model inside a diffusers Stable Diffusion pipeline; its parts are shared, not copied.

        Raises:
            UserError: the pipeline lacks one of the parts of Stable Diffusion 1.x and 2.x.
        """
        missing = [part for part in cls.__annotations__ if part != "id" and getattr(pipeline, part, None) is None]
        if missing or hasattr(pipeline, "text_encoder_2"):
            lacks = f"lacks {', '.join(missing)}" if missing else "has two text encoders"
            raise UserError(
                f"{type(pipeline).__name__} {lacks}; models in the layout of Stable Diffusion 1.x and 2.x "
                "(tokenizer, text_encoder, unet, vae, scheduler) can be customized."
            )
        if pipeline.unet.device.type == "meta":
            raise UserError(
                "This pipeline moves weights layer by layer (sequential CPU offload), so they cannot be customized: "
                "use enable_model_cpu_offload(), or keep the model on one device."
            )
        parts = {part: getattr(pipeline, part) for part in cls.__annotations__ if part != "id"}
        name = pipeline.config.get("_name_or_path") or type(pipeline).__name__
        return cls(id=TOYBOX if Path(name) == TOYBOX_DIR else str(name), **parts)

    def freeze(self) -> None:
        """No weight of the base is trained from here on."""
        for part in (self.text_encoder, self.unet, self.vae):
            part.requires_grad_(False).eval()

    @cached_property
    def noise_schedule(self) -> Any:
        """How noise is added in training, whichever scheduler samples: z_t = sqrt(abar_t) z_0 + sigma_t noise."""
        return DDPMScheduler.from_config(self.scheduler.config)

    @cached_property
    def text_metric(self) -> Tensor:
        """C^-1 [C, C] of the text states that prompts usually have: what closed-form methods measure with."""
        return inverse_second_moment(typical_states(self))

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def generation(self) -> str:
        """ "v1" or "v2" of Stable Diffusion, told apart by the width of the text states."""
        return "v2" if self.unet.config.cross_attention_dim == 1024 else "v1"

    @property
    def size_px(self) -> int:
        """Side of the pictures the model was made for, in pixels."""
        return self.unet.config.sample_size * self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def step_px(self) -> int:
        """Sides of pictures are multiples of this many pixels, so that the network can halve their latents."""
        return self.pixels_per_latent * 2 ** (len(self.unet.config.down_block_types) - 1)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], words: Mapping[str, str] | None = None) -> Conditioning:
        """Text states of the prompts, and where each concept stands in them.

        Args:
            prompts: B prompts; `<name>` stands for the concept called name.
            words: what the text model reads for a concept, by concept name: its class noun.

        Raises:
            UserError: a placeholder names no concept, or stands beyond the last token the model reads.
        """
        parsed = [parse_prompt(prompt, words or {}) for prompt in prompts]
        encoded, concept_tokens = tokenize(self.tokenizer, parsed)
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        token_ids = encoded.input_ids.to(self.device)
        mask = encoded.attention_mask.to(self.device) if masked else None
        return Conditioning(self.read_tokens(token_ids, mask), tuple(concept_tokens), token_ids, mask)

    def read_tokens(self, token_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Text states [B, T, C] of token ids [B, T]."""
        return self.text_encoder(token_ids, attention_mask=attention_mask)[0].to(self.dtype)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's prediction, of the kind `scheduler.config.prediction_type` names; [B, C, H, W]."""
        inputs = (noisy_latents.to(self.dtype), timesteps)
        return self.unet(*inputs, encoder_hidden_states=conditioning.text_states, return_dict=False)[0]

    @contextmanager
    def customized(self, *adapters: Customization, borrows: Tensor | None = None) -> Iterator[Denoiser]:
        """The base with adapters, as a denoiser; leaving the block leaves no trace in the base.

        Args:
            borrows: [B] bool, which rows take the foundation's queries; None leaves it to the adapters' methods.
        """
        with attached(self, adapters, borrows) as denoiser:
            yield denoiser

    def digest(self) -> str:
        """A hash of every weight and of the noise schedule, 16 hexadecimal digits: for results that depend on all."""
        schedule = json.dumps(dict(self.noise_schedule.config), sort_keys=True, default=str)
        digest = hashlib.sha256(schedule.encode())
        for part in (self.text_encoder, self.unet, self.vae):
            for name, tensor in sorted(part.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """64 weights of the cross-attention keys, rounded to bfloat16, as hexadecimal digits.

        Unlike a hash it may be compared with a tolerance (`same_base`), so that the same model is recognised in another
        precision, and with the adapters of other tools beside it.
        """
        layers = [layer.to_k for layer in cross_attentions(self.unet).values()]
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
) -> Base:
    """Load a base model: "toybox", a folder, or a hub id that `StableDiffusionPipeline.from_pretrained` loads.

    Args:
        device: by default the first CUDA device, Apple's, or the CPU.
        dtype: precision in which the frozen weights are held.

    Raises:
        UserError: nothing loadable is found there.
    """
    name = str(name_or_path)
    path = TOYBOX_DIR if name == TOYBOX else name
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            path, dtype=dtype, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f'No base model could be loaded from "{name}": {first_line(error)} Give "{TOYBOX}", or a '
            "folder or hub id in the diffusers layout of Stable Diffusion (with a model_index.json)."
        ) from error
    base = Base.from_pipeline(pipeline.to(device or _default_device()))
    base.id = name
    channels = base.unet.config.in_channels, base.vae.config.latent_channels
    if channels[0] != channels[1]:
        raise UserError(
            f'"{name}" takes {channels[0]} channels where its latents have {channels[1]}: it is an inpainting or '
            "editing model. Give a text-to-image model; adapters trained on it work in inpainting pipelines too."
        )
    base.freeze()
    return base


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
