"""A folder or hub id in Stable Diffusion's layout -> Base: the frozen model; encode, predict, fingerprint."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from infusion.base.denoiser import Conditioning, Denoiser
from infusion.base.streams import TwinStreams
from infusion.errors import UserError
from infusion.prompts import parse_prompt, tokenize

if TYPE_CHECKING:
    from infusion.methods.method import Adapter

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

    def __post_init__(self) -> None:
        for part in (self.text_encoder, self.unet, self.vae):
            part.requires_grad_(False).eval()

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
        parts = {part: getattr(pipeline, part) for part in cls.__annotations__ if part != "id"}
        name = pipeline.config.get("_name_or_path") or type(pipeline).__name__
        return cls(id=TOYBOX if Path(name) == TOYBOX_DIR else str(name), **parts)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def size_px(self) -> int:
        """Side of the pictures the model was made for, in pixels."""
        return self.unet.config.sample_size * self.pixels_per_latent

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], class_nouns: Mapping[str, str] | None = None) -> Conditioning:
        """Text states of the prompts, and where each concept stands in them.

        Args:
            prompts: B prompts; `<name>` stands for the concept called name.
            class_nouns: class noun by concept name.

        Raises:
            UserError: a placeholder names no concept, or stands beyond the last token the model reads.
        """
        parsed = [parse_prompt(prompt, class_nouns or {}) for prompt in prompts]
        encoded, concept_tokens = tokenize(self.tokenizer, parsed)
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = encoded.attention_mask.to(self.device) if masked else None
        states = self.text_encoder(encoded.input_ids.to(self.device), attention_mask=mask)[0]
        return Conditioning(states.to(self.dtype), tuple(concept_tokens))

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's prediction, of the kind `scheduler.config.prediction_type` names; [B, C, H, W]."""
        inputs = (noisy_latents.to(self.dtype), timesteps)
        return self.unet(*inputs, encoder_hidden_states=conditioning.text_states, return_dict=False)[0]

    @contextmanager
    def customized(self, *adapters: "Adapter") -> Iterator[Denoiser]:
        """The base with adapters, as a denoiser; leaving the block leaves no trace in the base."""
        with attached(self, adapters) as streams:
            yield _Customized(self, streams)

    def fingerprint(self) -> str:
        """64 weights spread over the UNet and the text encoder, rounded to bfloat16, as hexadecimal digits.

        Unlike a hash it may be compared with a tolerance (`same_base`), so that the same model held in another
        precision is recognised and a fine-tuned one is not.
        """
        weights = [*self.unet.state_dict().values(), *self.text_encoder.state_dict().values()]
        weights = [weight for weight in weights if weight.is_floating_point() and weight.dim() > 1]
        spread = [weights[i * len(weights) // _FINGERPRINT_WEIGHTS] for i in range(_FINGERPRINT_WEIGHTS)]
        values = torch.stack([w.flatten()[w.numel() // 2].float().cpu() for w in spread])
        return values.bfloat16().view(torch.uint16).numpy().astype(">u2").tobytes().hex()


@dataclass
class _Customized:
    """A base under value residuals; a `Denoiser`."""

    base: Base
    streams: TwinStreams

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        self.streams.rows = conditioning.concept_tokens
        self.streams.borrows = conditioning.borrows
        return self.base.predict(noisy_latents, timesteps, conditioning)


@contextmanager
def attached(base: Base, adapters: Sequence["Adapter"]) -> Iterator[TwinStreams]:
    """The adapters' edits, on the live network for the length of the block."""
    names = [adapter.concept_name for adapter in adapters]
    if len(set(names)) < len(names):
        raise UserError(f"Two concepts share a name among: {', '.join(names)}; train one under another name.")
    with TwinStreams(base.unet, [adapter.edit() for adapter in adapters]).attached() as streams:
        yield streams


def same_base(fingerprint: str, other: str) -> bool:
    """Whether two fingerprints are one model's, allowing for a change of precision (1%)."""

    def values(digits: str) -> Tensor:
        words = struct.unpack(f">{len(digits) // 4}H", bytes.fromhex(digits))
        return torch.tensor(words, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()

    return len(fingerprint) == len(other) and torch.allclose(values(fingerprint), values(other), rtol=0.01, atol=1e-7)


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
            f'No base model could be loaded from "{name}": {str(error).splitlines()[0]} Give "{TOYBOX}", or a '
            "folder or hub id in the diffusers layout of Stable Diffusion (with a model_index.json)."
        ) from error
    base = Base.from_pipeline(pipeline.to(device or _default_device()))
    base.id = name
    return base


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
