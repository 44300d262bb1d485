"""A base, a class noun, a plan -> the base's own images and predictions, which customized models are compared with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from infusion import metrics
from infusion.base import Base, Conditioning
from infusion.base.prompts import class_prompt
from infusion.evaluation.drawing import Asked, decoded, draw
from infusion.evaluation.evaluators import Evaluators
from infusion.evaluation.plans import Plan
from infusion.metrics.latent_fisher import Probe
from infusion.metrics.metric import Images
from infusion.metrics.wasserstein import Features, distances
from infusion.store import Store

_NULL_SEEDS = 1000  # or as many as images, where they are more; sets that are not compared may share seeds
_CLASS_SEEDS = 2000
_PRIOR_SEEDS = 3000


@dataclass(frozen=True)
class Probed:
    """A probe, the prompts there, and what it predicts: with the prompt and with none."""

    probe: Probe
    texts: tuple[str, ...]
    eps_0: Tensor
    eps_empty: Tensor
    timesteps: Tensor


class Reference:
    """The base model's own images and predictions for a class noun: what every customized model is compared with.

    Everything is drawn when it is first asked for, and kept; in `folder`, where there is one, for other processes too.
    report: called with how many images were drawn, here and in `evaluate`. first_seed: of the base's images;
    another one for draws that are to be independent of these. shared_noise: all prompts begin with the same few noises,
    as those of a benchmark do; without it every image begins with its own, and intervals over prompts count what
    other seeds would give.
    """

    def __init__(
        self,
        base: Base,
        class_noun: str,
        plan: Plan,
        evaluators: Evaluators,
        report: Callable[[int], None] | None = None,
        folder: Path | None = None,
        first_seed: int = 0,
        shared_noise: bool = False,
    ) -> None:
        evaluators.check_can_see(base)
        self.base = base
        self.class_noun = class_noun
        self.plan = plan
        self.evaluators = evaluators
        self.report = report
        self.store = Store(folder)
        self.first_seed = first_seed
        self.shared_noise = shared_noise
        self._seen: dict[int, Images] = {}

    def seeds(self, first: int, num: int, num_texts: int) -> list[range]:
        """Of `num` images of every text."""
        apart = 0 if self.shared_noise else num
        return [range(first + n * apart, first + n * apart + num) for n in range(num_texts)]

    @property
    def own_seeds(self) -> list[range]:
        """For every prompt, those that the base model and every customized one draw with."""
        return self.seeds(self.first_seed, self.plan.drawing.num_seeds, len(self.plan.prompts))

    def texts(self, words: str) -> list[str]:
        """The plan's prompts with `words` in the place of the concept."""
        return [wanted.text.format(words) for wanted in self.plan.prompts]

    @property
    def class_text(self) -> str:
        return class_prompt(self.class_noun)

    @property
    def asked(self) -> dict[str, Asked]:
        """What the base draws, by the names it is kept under; "s1" to "s3" are of the probes.

        null_images: the same prompts with other seeds: what finite samples alone make of every distance.
        """
        drawing, nouns = self.plan.drawing, self.texts(self.class_noun)
        null = self.first_seed + max(_NULL_SEEDS, len(self.plan.prompt_of))
        probes = {"s1": self.plan.unrelated, "s2": self.plan.siblings, "s3": nouns}
        return {
            "images": Asked(nouns, self.own_seeds),
            "null_images": Asked(nouns, self.seeds(null, drawing.num_seeds, len(nouns))),
            "class_images": Asked([self.class_text], self.class_seeds),
            **{
                name: Asked(texts, self.seeds(0, drawing.latents_per_prompt, len(texts)))
                for name, texts in probes.items()
            },
        }

    @cached_property
    def images(self) -> Tensor:
        return self._drawn("images")

    @cached_property
    def null_images(self) -> Tensor:
        return self._drawn("null_images")

    @cached_property
    def class_images(self) -> Tensor:
        return self._drawn("class_images")

    @property
    def class_seeds(self) -> range:
        return range(_CLASS_SEEDS, _CLASS_SEEDS + self.plan.drawing.num_class_pictures)

    def prior_latents(self, num: int) -> Tensor:
        """Images of the class for prior preservation, of seeds that nothing is measured on."""
        return self._latents("prior_latents", Asked([self.class_text], range(_PRIOR_SEEDS, _PRIOR_SEEDS + num)), None)

    def seen(self, images: Tensor) -> Images:
        """Images, and where the evaluators see the subject in them; the base's own are looked at once for everyone."""
        if id(images) in self._seen:
            return self._seen[id(images)]
        base, noun, evaluators = self.base, self.class_noun, self.evaluators
        return Images(
            images,
            find_subject=lambda some: evaluators.subject(base, some, noun),
            find_foreground=lambda some: evaluators.foreground(base, some, noun),
        )

    @cached_property
    def nulls(self) -> dict[str, float]:
        """What every Wasserstein distance is between the base and itself with other seeds."""
        return distances(self.features(self.images), self.features(self.null_images))

    def features(self, images: Tensor) -> Features:
        """What Wasserstein distances are taken between."""
        return Features.of(self.seen(images), self.evaluators.clip)

    def kept_path(self, name: str) -> Path:
        """Where something of `asked` is kept."""
        return self.store.path(name, self.asked[name].facts(self.plan))

    def _drawn(self, name: str) -> Tensor:
        images = decoded(self.base, self._latents(name, self.asked[name], self.report))
        self._seen[id(images)] = self.seen(images)
        return images

    def _latents(self, kind: str, asked: Asked, report: Callable[[int], None] | None) -> Tensor:
        def make() -> dict[str, Tensor]:
            return {"latents": draw(self.base, self.plan, *asked, report=report)}

        return self.store.get(kind, asked.facts(self.plan), make)["latents"]

    @cached_property
    def probes(self) -> dict[str, Probed]:
        """S1 unrelated prompts, S2 sibling classes, S3 the class noun, S4 the class noun where the concept will be."""
        probes = {name: self._probed(name) for name in ("s1", "s2", "s3")}
        third = probes["s3"]
        drawn = decoded(self.base, third.probe.latents)
        masks = self.evaluators.foreground(self.base, drawn, self.class_noun)
        weights = metrics.outside_subject(masks, third.probe.latents.shape[-2:])  # type: ignore[arg-type]
        weights = torch.where(weights.sum(dim=(1, 2, 3), keepdim=True) > 0, weights, torch.ones_like(weights))
        outside = Probe(third.probe.latents, third.probe.prompt_of, weights)
        probes["s4"] = Probed(outside, third.texts, third.eps_0, third.eps_empty, third.timesteps)
        return probes

    def _probed(self, name: str) -> Probed:
        asked, num, steps = self.asked[name], self.plan.drawing.latents_per_prompt, self.plan.drawing.num_timesteps
        latents, texts = self._latents(name, asked, self.report), tuple(asked.texts)
        probe = Probe(latents, torch.arange(len(texts)).repeat_interleave(num))
        schedule = self.base.noise_schedule

        def predictions() -> dict[str, Tensor]:
            prompted = self.conditioning(texts, {})
            empty = self.base.encode([""]).rows([0] * len(prompted))
            return {
                kind: metrics.eps_predictions(self.base, schedule, probe, conditioning, steps)
                for kind, conditioning in (("prompted", prompted), ("empty", empty))
            }

        eps = self.store.get(f"{name}_eps", {**asked.facts(self.plan), "num_timesteps": steps}, predictions)
        timesteps = metrics.stratified_timesteps(schedule, probe, steps, seed=0)
        return Probed(probe, texts, eps["prompted"], eps["empty"], timesteps)

    def conditioning(self, texts: Sequence[str], words: Mapping[str, str], base: Base | None = None) -> Conditioning:
        """The conditioning of a probe's latents, by `base` or another model: each text as often as it has latents."""
        num = self.plan.drawing.latents_per_prompt
        return (base or self.base).encode(texts, words).rows([row for row in range(len(texts)) for _ in range(num)])
