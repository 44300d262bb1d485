"""A training + what it can tell of itself -> the step to keep: `--stop auto`.

Every few steps the adapter draws a few fixed prompts with fixed seeds, none of which need images beyond the training
images. Two shares are read off them, and the step at which their harmonic mean is highest is kept:

    learnt    likeness to the training images, from 0 (the base's images of the class noun) to 1 (the training
              images among themselves), by an encoder of images;
    followed  how probable a CLIP finds an image's own prompt, among all the prompts with this and with other nouns,
              over the same of the base's images.

It works on any adapter, because it looks at nothing but images. Encoders that judge the result should be others.
"""

import json
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infusion.base import Base
from infusion.base.customization import Named
from infusion.base.latents import decode_latents, square
from infusion.concepts.concept import Concept
from infusion.errors import UserError
from infusion.files import whole_file
from infusion.generation.pipeline import sample_prompts
from infusion.generation.sampling import few_step_scheduler
from infusion.methods.adapter import Adapter
from infusion.metrics.encoders import Clip, ImageEncoder
from infusion.training.loop import Progress

PROMPTS = (
    "a {} on the beach",
    "a {} in the forest",
    "a {} in the snow",
    "a {} on a wooden floor",
    "a {} in the water",
    "a sketch of a {}",
    "a watercolor of a {}",
    "a {} at night",
)
EVERY, PATIENCE = 25, 4  # steps between checks; checks without anything better before a training ends
_SEEDS = range(4000, 4002)
_SAMPLING: dict[str, Any] = {"num_inference_steps": 8, "guidance_scale": 5.0, "batch_size": 16}
_OTHER_NOUNS = ("cat", "dog", "car", "airplane", "rabbit", "teapot")  # the concept's own is left out


@dataclass(frozen=True)
class Check:
    """What was read at a step. loss: the mean of the training loss since the check before."""

    step: int
    learnt: float
    followed: float
    loss: float

    @property
    def score(self) -> float:
        """Harmonic mean of what was learnt and what was followed, each in [0, 1]."""
        learnt, followed = (min(max(value, 0.0), 1.0) for value in (self.learnt, self.followed))
        return 2 * learnt * followed / max(learnt + followed, 1e-9)


class SelfCheck:
    """Draws and reads an adapter's images; what the base makes of the same prompts and seeds is drawn once."""

    def __init__(self, base: Base, concept: Concept, clip: Clip, encoder: ImageEncoder) -> None:
        self.base = base
        self.clip = clip
        self.encoder = encoder
        nouns = [concept.class_noun, *(noun for noun in _OTHER_NOUNS if noun != concept.class_noun)]
        self.texts = clip.encode_texts([prompt.format(noun) for noun in nouns for prompt in PROMPTS])
        self.training = encoder.encode_images(_as_tensor([square(image, base.size_px) for image in concept.images]))
        plain = self._drawn(concept.class_noun)
        self.floor = self._likeness(plain)
        self.ceiling = _among_themselves(self.training)
        self.told = self._told(plain)

    def __call__(self, adapter: Named, step: int, loss: float, base: Base | None = None) -> Check:
        """base: what the adapter is applied to, where that is another model."""
        images = self._drawn(f"<{adapter.concept_name}>", base, adapter)
        learnt = (self._likeness(images) - self.floor) / max(self.ceiling - self.floor, 1e-6)
        return Check(step, learnt, self._told(images) / self.told, loss)

    def _drawn(self, name: str, base: Base | None = None, *adapters: Named) -> Tensor:
        base = base or self.base
        scheduler = few_step_scheduler(base)
        texts = [prompt.format(name) for prompt in PROMPTS]
        batches = sample_prompts(base, texts, adapters, _SEEDS, scheduler=scheduler, **_SAMPLING)
        return _as_tensor([image for latents in batches for image in decode_latents(base, latents)])

    def _likeness(self, images: Tensor) -> float:
        return (self.encoder.encode_images(images) @ self.training.T).mean().item()

    def _told(self, images: Tensor) -> float:
        """Probability of an image's own prompt among all prompts, mean over images."""
        logits = self.clip.model.logit_scale.exp().item() * self.clip.encode_images(images) @ self.texts.T
        own = torch.arange(len(PROMPTS)).repeat_interleave(len(_SEEDS))
        return torch.softmax(logits, dim=1)[torch.arange(len(own)), own].mean().item()


def looked_with(*encoder_names: str) -> str:
    """What must agree for checks to be compared: who looks, and at what."""
    return json.dumps([encoder_names, PROMPTS, list(_SEEDS), _SAMPLING])


def choose(checks: Sequence[Check], among: Collection[int]) -> Check:
    """The check to keep, of those at the steps `among`: the highest mean over a check and its neighbours in `checks`,
    which tames their noise. A mean over fewer would be noisier, and be chosen for that; so the first and the last share
    that of their neighbours, and of equal means the check that is the better itself is kept."""

    def smooth(at: int) -> tuple[float, float]:
        first = max(0, min(at - 1, len(checks) - 3))
        near = checks[first : first + 3]
        return sum(check.score for check in near) / len(near), checks[at].score

    return checks[max((at for at, check in enumerate(checks) if check.step in among), key=smooth)]


class Kept:
    """The checks of a training, and the adapter's states that may still turn out best; in a file if there is a path.

    identity: what must agree for the checks of a file to be gone on with (`looked_with`).

    Raises:
        UserError: the file is damaged, or of another identity.
    """

    def __init__(self, path: str | Path | None = None, identity: str = "") -> None:
        self.path = Path(path) if path else None
        self.identity = identity
        self.checks: list[Check] = []
        self.states: dict[int, dict[str, Tensor]] = {}
        if self.path and self.path.exists():
            self._load(self.path)

    def forget_from(self, step: int) -> None:
        """Drop what was kept of steps that are trained again."""
        self.checks = [check for check in self.checks if check.step < step]
        self.states = {at: state for at, state in self.states.items() if at < step}

    def add(self, check: Check, state: Mapping[str, Tensor]) -> None:
        """Keep a state, and the best of those before it: their scores are settled, its own is not until the next."""
        self.checks.append(check)
        if self.states:
            settled = choose(self.checks, self.states).step
            self.states = {settled: self.states[settled]}
        self.states[check.step] = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        if self.path:
            self._save(self.path)

    @property
    def best(self) -> Check:
        """Of the checks whose states are here."""
        return choose(self.checks, self.states)

    @property
    def checks_since_best(self) -> int:
        return len(self.checks) - 1 - self.checks.index(self.best)

    def _save(self, path: Path) -> None:
        tensors = {f"{step}/{name}": tensor for step, state in self.states.items() for name, tensor in state.items()}
        checks = json.dumps([asdict(check) for check in self.checks])
        about = {"checks": checks, "identity": self.identity}
        with whole_file(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, about)

    def _load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                self.checks = [Check(**check) for check in json.loads(about["checks"])]
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    step, _, tensor = name.partition("/")
                    self.states.setdefault(int(step), {})[tensor] = file.get_tensor(name)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}, where a training's best step is kept, cannot be read ({error}); delete it to look anew."
            ) from error
        if about.get("identity") != self.identity:
            raise UserError(
                f"The best step kept in {path} was found by other encoders or prompts, and their scores cannot be "
                "compared; give the encoders it was found by, or delete it to look anew."
            )


def train_until_best(
    training: Generator[Progress, None, None],
    adapter: Adapter,
    check: Callable[[Adapter, int, float], Check],
    kept: Kept,
    every: int = EVERY,
    patience: int = PATIENCE,
) -> Iterator[tuple[Progress, Check | None]]:
    """Run a training, check it every so many steps, and leave the adapter as it was at the best check, `kept.best`.

    Args:
        check: a `SelfCheck`, or another judgement of (adapter, step, training loss).
        kept: with a path, a resumed training goes on with the checks made before. Its file is of use as long as the
            training's checkpoint is: who removes the one removes the other.
        patience: the training ends early when so many checks in a row have brought nothing better.

    Yields:
        the training's progress, and the check where one was made.
    """
    losses: list[float] = []
    for progress in training:
        if not losses:
            kept.forget_from(progress.step)
        losses.append(progress.loss)
        made = None
        if progress.step % every == 0 or progress.step == progress.max_train_steps:
            made = check(adapter, progress.step, sum(losses[-every:]) / len(losses[-every:]))
            kept.add(made, adapter.state_dict())
        yield progress, made
        if made and kept.checks_since_best >= patience:
            break
    training.close()
    if kept.states:
        adapter.load_state_dict(kept.states[kept.best.step])


def _as_tensor(images: Sequence[Any]) -> Tensor:
    """PIL images of one size -> [N, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255


def _among_themselves(features: Tensor) -> float:
    """Mean cosine of features [K, D] to each other; 1 for a single one."""
    if len(features) < 2:
        return 1.0
    cosines = features @ features.T
    return ((cosines.sum() - cosines.diagonal().sum()) / (len(features) * (len(features) - 1))).item()
