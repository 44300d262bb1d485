"""What a person says of a training -> settings of its method and of its steps; declared where no torch is needed."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from infusion.settings import setting, validate

_MASKED_LOSS = "Learn the subject only, and nothing of what is around it."


@dataclass(frozen=True)
class TrainingSettings:
    """How a method's adapter is trained; what is learned, how fast and how long stands in the method."""

    train_batch_size: int = setting(4, help="Pictures per step.", minimum=1)
    gradient_accumulation_steps: int = setting(1, help="Batches per optimiser step.", minimum=1)
    lr_scheduler: Literal["constant", "linear", "cosine"] = setting(
        "constant", help="How the learning rate runs over the steps; linear and cosine end at zero."
    )
    flip: bool = setting(True, help="Also train on mirror images; turn off for subjects with a left and a right.")
    seed: int = setting(0, help="Everything random in training follows from it.", minimum=0)
    checkpointing_steps: int = setting(100, help="Steps between checkpoints, from which training resumes.", minimum=1)
    foundation_reuse: int = setting(
        1,
        help="Steps in a row on one batch, with one pass of the foundation: above 1 a step costs less, teaches less.",
        minimum=1,
    )

    def __post_init__(self) -> None:
        validate(self)

    def identity(self) -> dict[str, Any]:
        """The settings by name, for digests; without what older digests do not know, as long as it changes nothing."""
        facts = asdict(self)
        if self.foundation_reuse == 1:
            del facts["foundation_reuse"]
        return facts


@dataclass(frozen=True)
class MethodSettings:
    """What every method is told. What it does with it stands in `methods/`, in a class that derives from both.

    Two settings of training are the method's own: `masked_loss`, whether only the subject is learnt, and
    `prior_preservation_weight`, how much pictures of the class that the base draws itself count beside the concept's.
    """

    name: ClassVar[str]
    prior_preservation_weight: ClassVar[float] = 0.0
    num_class_images: ClassVar[int] = 0

    learning_rate: float = setting(0.01, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(500, help="Optimiser steps.", minimum=1)
    masked_loss: bool = setting(False, help=_MASKED_LOSS)

    def __post_init__(self) -> None:
        validate(self)

    def words(self, class_noun: str) -> str:
        """What the text model reads where a prompt names the concept: by default the class noun."""
        return class_noun


@dataclass(frozen=True)
class RareTokenSettings(MethodSettings):
    """Of a method whose prompts name the concept by a word that means little, and the class noun: "sks cat"."""

    rare_token: str = setting("sks", help="The word before the class noun that stands for the concept.")

    def words(self, class_noun: str) -> str:
        return f"{self.rare_token} {class_noun}"


@dataclass(frozen=True)
class PriorPreservingSettings(RareTokenSettings):
    """Of a method that trains pictures of the class beside the concept's: constants elsewhere are settings here."""

    prior_preservation_weight: float = setting(  # type: ignore[misc]
        1.0, help="How much pictures of the class that the base draws count in the loss; 0 is without.", minimum=0
    )
    num_class_images: int = setting(  # type: ignore[misc]
        200, help="Pictures of the class that the base draws for prior preservation.", minimum=1
    )


@dataclass(frozen=True)
class InfusionSettings(MethodSettings):
    """The published recipe: all layers, dual streams, AdamW at 0.01, 500 steps."""

    name: ClassVar[str] = "infusion"

    masked_loss: bool = setting(True, help=_MASKED_LOSS)
    layers: str = setting(
        "all",
        help="Which cross-attention layers learn a residual: all, down, mid, up, or patterns of module paths "
        'separated by commas, such as "up_blocks.2.*,up_blocks.3.*".',
    )
    streams: Literal["dual", "single", "mixed"] = setting(
        "dual",
        help="Whose attention maps the customized rows use: the foundation's (dual), their own (single), or, in "
        "training, the foundation's for a random share of the rows (mixed).",
    )
    mixing_probability: float = setting(
        0.5,
        help="Share of training rows that borrow the foundation's maps when streams is mixed.",
        minimum=0,
        maximum=1,
    )
    keys: bool = setting(
        False, help="Also learn a residual for the keys, as the authors' code does where xformers is installed."
    )


@dataclass(frozen=True)
class TextualInversionSettings(MethodSettings):
    """Defaults: diffusers' training script, with its learning rate unscaled.

    There it is multiplied by the pictures per step where `--scale_lr` is given.
    """

    name: ClassVar[str] = "textual-inversion"

    learning_rate: float = setting(5e-4, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(3000, help="Optimiser steps.", minimum=1)


@dataclass(frozen=True)
class ExtendedTextualInversionSettings(MethodSettings):
    """Defaults: the paper's 500 steps at 5e-3."""

    name: ClassVar[str] = "xti"

    learning_rate: float = setting(5e-3, help="AdamW's learning rate.", above=0)


@dataclass(frozen=True)
class PerfusionSettings(MethodSettings):
    """Of the word, of the values' targets, and of the gate."""

    name: ClassVar[str] = "perfusion"

    learning_rate: float = setting(0.03, help="AdamW's learning rate for the targets of the values.", above=0)
    max_train_steps: int = setting(400, help="Optimiser steps.", minimum=1)
    masked_loss: bool = setting(True, help=_MASKED_LOSS)
    embedding_learning_rate: float = setting(0.006, help="AdamW's learning rate for the word.", above=0)
    training_bias: float = setting(0.75, help="Similarity at which the gate is half open in training.")
    training_temperature: float = setting(0.1, help="How soft the gate is in training.", above=0)
    bias: float = setting(0.7, help="Similarity at which the gate is half open in drawing: higher is less concept.")
    temperature: float = setting(0.15, help="How soft the gate is in drawing.", above=0)


@dataclass(frozen=True)
class CustomDiffusionSettings(PriorPreservingSettings):
    """Defaults: the paper's steps and its learning rate after scaling."""

    name: ClassVar[str] = "custom-diffusion"

    learning_rate: float = setting(8e-5, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(250, help="Optimiser steps.", minimum=1)


@dataclass(frozen=True)
class LoRASettings(RareTokenSettings):
    """Defaults: diffusers' training script."""

    name: ClassVar[str] = "lora"

    learning_rate: float = setting(1e-4, help="AdamW's learning rate.", above=0)
    rank: int = setting(4, help="Rank of the additions; they are not scaled (alpha = rank).", minimum=1, maximum=1024)


@dataclass(frozen=True)
class DreamBoothSettings(PriorPreservingSettings):
    """Defaults: diffusers' training script with prior preservation."""

    name: ClassVar[str] = "dreambooth"

    learning_rate: float = setting(5e-6, help="AdamW's learning rate.", above=0)
    max_train_steps: int = setting(800, help="Optimiser steps.", minimum=1)


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    settings.name: settings
    for settings in (
        InfusionSettings,
        TextualInversionSettings,
        ExtendedTextualInversionSettings,
        PerfusionSettings,
        CustomDiffusionSettings,
        LoRASettings,
        DreamBoothSettings,
    )
}
