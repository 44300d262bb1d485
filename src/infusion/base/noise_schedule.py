"""A diffusers scheduler -> how training noises latents, and what the network is to predict of them."""

from typing import Any

from diffusers import DDPMScheduler
from diffusers.configuration_utils import FrozenDict
from torch import Tensor

from infusion.errors import UserError

FLOW = "flow"


class FlowSchedule:
    """Rectified flow: z_t = (1 - s) z_0 + s eps with s = t / num_train_timesteps, and the network predicts eps - z_0.

    Answers as a DDPMScheduler does. shift: how far training leans towards noise (arXiv 2403.03206, equation 23).
    """

    def __init__(self, num_train_timesteps: int, shift: float) -> None:
        self.config: Any = FrozenDict(num_train_timesteps=num_train_timesteps, prediction_type=FLOW, shift=shift)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        level = self.levels(timesteps, latents)
        return (1 - level) * latents + level * noise

    def levels(self, timesteps: Tensor, latents: Tensor) -> Tensor:
        """s of each row, [B, 1, 1, 1]."""
        level = timesteps.to(latents) / self.config.num_train_timesteps
        return level.reshape(-1, *[1] * (latents.ndim - 1))


def noise_schedule(scheduler: Any) -> DDPMScheduler | FlowSchedule:
    """How the model was trained, whichever scheduler samples."""
    config = scheduler.config
    if "Flow" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction":
        return FlowSchedule(config.num_train_timesteps, config.get("shift") or config.get("flow_shift") or 1.0)
    return DDPMScheduler.from_config(config)


def schedule_facts(schedule: DDPMScheduler | FlowSchedule) -> dict[str, Any]:
    """What a schedule is, for digests: the same in every process, whatever order diffusers lists its defaults in."""
    facts = dict(schedule.config)
    return {name: sorted(value) if name == "_use_default_values" else value for name, value in facts.items()}


def training_timesteps(schedule: Any, drawn: Tensor) -> Tensor:
    """Timesteps [B] for whole numbers [B] drawn uniformly from 0 to num_train_timesteps - 1."""
    if schedule.config.prediction_type != FLOW:
        return drawn
    total, shift = schedule.config.num_train_timesteps, schedule.config.shift
    level = (drawn + 1) / total
    return total * shift * level / (1 + (shift - 1) * level)


def training_target(schedule: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network should predict of `schedule.add_noise(latents, noise, timesteps)`.

    Raises:
        UserError: it predicts something else than noise, velocity or flow.
    """
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return schedule.get_velocity(latents, noise, timesteps)
    if kind == FLOW:
        return noise - latents
    raise UserError(
        f'This base predicts "{kind}"; bases that predict "epsilon", "v_prediction" or a flow can be trained on.'
    )
