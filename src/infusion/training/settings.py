"""What a person says of a training -> the settings of its steps; declared where no torch is needed."""

from dataclasses import dataclass
from typing import Literal

from infusion.settings import setting, validate


@dataclass(frozen=True)
class TrainingSettings:
    """How a method's adapter is trained; what is learned, how fast and how long stands in the method."""

    train_batch_size: int = setting(4, help="Images per step.", minimum=1)
    gradient_accumulation_steps: int = setting(1, help="Batches per optimiser step.", minimum=1)
    lr_scheduler: Literal["constant", "linear", "cosine"] = setting(
        "constant", help="How the learning rate runs over the steps; linear and cosine end at zero."
    )
    flip: bool = setting(True, help="Also train on mirror images; turn off for subjects with a left and a right.")
    seed: int = setting(0, help="Everything random in training follows from it.", minimum=0)
    checkpointing_steps: int = setting(100, help="Steps between checkpoints, from which training resumes.", minimum=1)

    def __post_init__(self) -> None:
        validate(self)
