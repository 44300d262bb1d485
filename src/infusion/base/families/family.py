"""What a kind of model is: where its network reads text, how its prompts are encoded, what a call of it needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from infusion.base.denoiser import Conditioning
from infusion.base.prompts import ConceptTokens, Prompt, tokenize
from infusion.errors import UserError


@dataclass(frozen=True)
class TextLayer:
    """An attention layer that reads text, by the names of its projections.

    borrowed: what its attention map is made of and what differs between two streams: a customized row takes these
    outputs from its foundation row. keys and values: the projections of the text's keys and values, whose outputs are
    [B, T, W], or [B, T + N, W] with the text first.
    """

    attention: nn.Module
    borrowed: tuple[str, ...] = ("to_q",)
    keys: str = "to_k"
    values: str = "to_v"

    @property
    def width(self) -> int:
        """W, the length of a value residual."""
        return getattr(self.attention, self.values).out_features


class Family(ABC):
    """A kind of model; one file each. Holds no weights: what it says, it says of the parts of a pipeline.

    known_as: what people call its models. network_class: diffusers' class of its denoiser.
    architecture: the name in ModelSpec's catalogue. network: the name of the denoiser among the pipeline's parts.
    shared_inputs: arguments of the network that have no entry for each row. masks_text: whether its attention leaves
    out the tokens that `Conditioning.attention_mask` says are not read. optional_parts: what a pipeline may lack.
    samples_in_fp32: whether its pipelines keep latents in fp32 while they sample, whatever the network's precision.
    """

    known_as: ClassVar[str] = ""
    network_class: ClassVar[str]
    architecture: str
    network: ClassVar[str] = "transformer"
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    shared_inputs: ClassVar[tuple[str, ...]] = ()
    masks_text: ClassVar[bool] = False
    optional_parts: ClassVar[tuple[str, ...]] = ()
    samples_in_fp32: ClassVar[bool] = False

    @classmethod
    def fits(cls, pipeline: Any, network: Any) -> bool:
        """Whether a pipeline with this network is of the family."""
        return type(network).__name__ == cls.network_class

    @classmethod
    def of(cls, network: Any) -> "Family":
        """The family, as it is for this network."""
        return cls()

    @property
    def needed_parts(self) -> tuple[str, ...]:
        """What a pipeline must have."""
        parts = (self.network, "vae", "scheduler", *self.tokenizers)  # text states may be given without text models
        return tuple(part for part in parts if part not in self.optional_parts)

    @abstractmethod
    def text_layers(self, network: nn.Module) -> dict[str, TextLayer]:
        """Every layer of the network that reads text, by module path, in the network's own order."""

    @abstractmethod
    def tokenize(self, pipeline: Any, prompts: Sequence[Prompt], **options: Any) -> tuple[Tensor, list[ConceptTokens]]:
        """What the text model reads of B prompts, and where in the text states each concept stands.

        options: arguments of the pipeline's `encode_prompt` that move tokens, such as `max_sequence_length`.

        Returns:
            token ids [B, ...] of the first text model whose states the network reads, and each prompt's concept tokens.

        Raises:
            UserError: a concept stands beyond the last token that is read.
        """

    @abstractmethod
    def encode(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        """The conditioning of each of B prompts."""

    def encode_negative(self, pipeline: Any, prompts: Sequence[Prompt]) -> Conditioning:
        """The conditioning of the unconditional rows of guidance; by default as for any prompt."""
        return self.encode(pipeline, prompts)

    def inputs(self, pipeline: Any, noisy_latents: Tensor, timesteps: Tensor, told: Conditioning) -> dict[str, Any]:
        """The arguments of the network for latents [B, C, H, W] and timesteps [B] or scalar."""
        timesteps = timesteps.to(noisy_latents.device).expand(len(noisy_latents))
        return {"hidden_states": noisy_latents, "timestep": timesteps, "encoder_hidden_states": told.text_states}

    def prediction(self, output: Tensor, noisy_latents: Tensor) -> Tensor:
        """What the network returned, as [B, C, H, W]; a variance predicted beside is dropped."""
        return output[:, : noisy_latents.shape[1]]

    def latent_shape(self, pipeline: Any) -> tuple[int, int, int]:
        """(C, H, W) of the latents of an image of the size the model was made for."""
        config = getattr(pipeline, self.network).config
        return config.in_channels, config.sample_size, config.sample_size

    def latent_step(self, network: Any) -> int:
        """Sides of latents are multiples of this: of what a UNet halves them by, or of a transformer's patches."""
        blocks = network.config.get("down_block_types")
        return 2 ** (len(blocks) - 1) if blocks else network.config.patch_size

    def timestep_options(self, scheduler: Any, num_inference_steps: int, shape: Sequence[int]) -> dict[str, Any]:
        """Arguments of `scheduler.set_timesteps` beside the number of steps, for latents of `shape` [C, H, W]."""
        return {}

    def default_guidance_scale(self, pipeline: Any) -> float:
        """How strongly to follow prompts where nobody says."""
        return 5.0

    def has_guidance_embedding(self, pipeline: Any) -> bool:
        """Whether the network has a guidance embedding, so that no unconditional row is run for it."""
        return False


def attention_layers(
    network: nn.Module, chosen: Callable[[str, nn.Module], bool], **names: Any
) -> dict[str, TextLayer]:
    """Text layers for the attention modules of a network that `chosen(path, module)` picks.

    Raises:
        UserError: projections are fused, so that nothing could be read from or added to one of them.
    """
    layers = {path: TextLayer(module, **names) for path, module in network.named_modules() if chosen(path, module)}
    if any(getattr(layer.attention, "fused_projections", False) for layer in layers.values()):
        raise UserError("The model's attention projections are fused; call unfuse_qkv_projections() on it first.")
    return layers


def is_cross_attention(_path: str, module: nn.Module) -> bool:
    """diffusers' attention from image positions to text."""
    return isinstance(module, Attention) and bool(module.is_cross_attention)


def tokenized(
    tokenizer: Any, prompts: Sequence[Prompt], max_length: int | None = None
) -> tuple[Tensor, list[ConceptTokens]]:
    """Token ids [B, T] of one tokenizer, and each prompt's concept tokens."""
    encoded, concept_tokens = tokenize(tokenizer, prompts, max_length)
    return encoded.input_ids, concept_tokens


def call_default(pipeline: Any, name: str) -> Any:
    """An argument of a call of the pipeline, where the person does not say."""
    return signature(type(pipeline).__call__).parameters[name].default


def texts_of(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def shifted(rows: Sequence[ConceptTokens], by: int) -> list[ConceptTokens]:
    """Token positions moved by a number of places."""
    return [{name: tuple(at + by for at in tokens) for name, tokens in row.items()} for row in rows]


def joined(*segments: Sequence[ConceptTokens]) -> list[ConceptTokens]:
    """Positions of one text in several segments of the states, row by row."""
    together: list[ConceptTokens] = []
    for rows in zip(*segments, strict=True):
        names = {name for row in rows for name in row}
        together.append({name: tuple(at for row in rows for at in row.get(name, ())) for name in sorted(names)})
    return together


def calculated_shift(scheduler: Any, num_positions: int, max_shift: float) -> float:
    """mu of dynamic shifting (Stable Diffusion 3, arXiv 2403.03206, section 5.3.2), linear in the image's positions."""
    config = scheduler.config
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    return low + (high - low) / (last - first) * (num_positions - first)
