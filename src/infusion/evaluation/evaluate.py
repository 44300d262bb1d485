"""A base, an adapter, real images of its concept -> every measure of what was learnt and of what was broken."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infusion import metrics
from infusion.base import Base
from infusion.base.customization import Named
from infusion.evaluation.drawing import Asked, decoded, draw
from infusion.evaluation.reference import Reference
from infusion.intervals import Figure
from infusion.metrics import alignment, copies, facts, identity, wasserstein
from infusion.metrics.catalogue import BY_NAME, METRICS
from infusion.metrics.copies import Nearest
from infusion.metrics.latent_fisher import Predictions
from infusion.metrics.metric import Evidence, Images, measure
from infusion.store import Store

_LATENTS = "latents"


@dataclass(frozen=True)
class ConceptImages:
    """Real images of the concept, [K, 3, H, W] each.

    training: those trained on. elsewhere: others in other places, None where there are none. same_place: others in the
    place of the training images, or None. Where they are missing the training images among themselves stand in.
    """

    training: Tensor
    elsewhere: Tensor | None = None
    same_place: Tensor | None = None


@dataclass(frozen=True)
class Drawn:
    """What a model drew: images of the plan's prompts [N, 3, H, W] and of the plain class noun [M, 3, H, W].

    seconds_per_image: in time of the processor; None where the images were there already.
    """

    images: Tensor
    class_images: Tensor
    seconds_per_image: float | None = None


def drawn_with(reference: Reference, adapter: Named, folder: Path | None = None, base: Base | None = None) -> Drawn:
    """Everything that an adapter is asked to draw.

    Args:
        folder: where the latents are kept, and taken from where they are there already: one for each adapter.
        base: what the adapter is applied to, where that is not the reference's: a model that another tool customized.
    """
    base, plan, report = base or reference.base, reference.plan, reference.report
    prompts, of_class = _asked_with(reference, f"<{adapter.concept_name}>")

    def make() -> dict[str, Tensor]:
        started = time.process_time()
        latents = draw(base, plan, *prompts, [adapter], report)
        seconds = torch.tensor((time.process_time() - started) / len(latents))
        class_latents = draw(base, plan, *of_class, [adapter], report)
        return {"images": latents, "class_images": class_latents, "seconds": seconds}

    tensors = Store(folder).get(_LATENTS, _facts_with(reference), make)
    images, class_images = (decoded(base, tensors[key]) for key in ("images", "class_images"))
    return Drawn(images, class_images, tensors["seconds"].item())


def latents_path(reference: Reference, folder: Path) -> Path:
    """Where `drawn_with` keeps what an adapter drew."""
    return Store(folder).path(_LATENTS, _facts_with(reference))


def _asked_with(reference: Reference, words: str) -> tuple[Asked, Asked]:
    """The prompts, with words in the concept's place, and the plain class noun."""
    prompts = Asked(reference.texts(words), reference.own_seeds)
    return prompts, Asked([reference.class_text], reference.class_seeds)


def _facts_with(reference: Reference) -> list[Any]:
    """What latents depend on beside the adapter, for which its folder stands: also for how it is named."""
    return [asked.facts(reference.plan) for asked in _asked_with(reference, "<>")]


@dataclass(frozen=True)
class Evaluation:
    """All measures of one customized model by name, and what was drawn.

    measures: with intervals over prompts, in the order of tables; those that the evaluators or the images given cannot
    tell are left out. followed: [N], the share of its prompt's facts that each image shows, or without judges their
    cosine. score: [N], how good each is: the mean of identity and followed, in [0, 1]. chances: how often chance alone
    makes background, layout and style differ so much; empty where noise is shared. nearest: the training image that
    each is most like; None without training images. never_nearer: the most that other real images are like one.
    """

    measures: dict[str, Figure]
    drawn: Drawn
    followed: Tensor
    score: Tensor
    chances: Mapping[str, float]
    nearest: Nearest | None = None
    never_nearer: float = math.inf


def evaluate(
    reference: Reference,
    adapter: Named | None,
    real: ConceptImages | None,
    drawn: Drawn | None = None,
    base: Base | None = None,
    unguided: Tensor | None = None,
) -> Evaluation:
    """Draw with an adapter and measure; with None, the base itself with the class noun in the concept's place.

    Args:
        real: images of the concept; without them identity, copies and collapse are not measured.
        drawn: images that were drawn already.
        base: what the adapter is applied to, where that is not the reference's: a model that another tool customized.
        unguided: images of the words for the subject alone, drawn without guidance: how many are training images?
    """
    if drawn is None:
        drawn = (
            drawn_with(reference, adapter, base=base) if adapter else Drawn(reference.images, reference.class_images)
        )
    evidence = replace(
        gather(reference, real, drawn),
        unguided=None if unguided is None else Images(unguided),
        predict=lambda: predictions(reference, adapter, base),
    )
    found = measure(evidence, METRICS)
    followed = (
        evidence.once(facts.of_each_image).satisfied if evidence.judges else evidence.once(alignment.of_each_image)
    )
    score, nearest, never_nearer = followed, None, math.inf
    if real:
        nearest, never_nearer = evidence.once(copies.of_each_image)
        own = evidence.once(identity.of_each_image).identity
        score = followed if own is None else (own.clamp(0, 1) + followed) / 2
    by_chance = (
        {}
        if reference.shared_noise
        else wasserstein.chances(
            reference.features(reference.null_images), evidence.once(wasserstein.features_of), evidence.prompt_of
        )
    )
    return Evaluation(_in_order(found), drawn, followed, score, by_chance, nearest, never_nearer)


def gather(reference: Reference, real: ConceptImages | None, drawn: Drawn) -> Evidence:
    """The evidence that images are; without predictions."""
    plan, evaluators = reference.plan, reference.evaluators
    num, noun = plan.drawing.num_seeds, {"class": reference.class_noun}
    training, elsewhere, same_place = (
        None if some is None else Images(some)
        for some in ((real.training, real.elsewhere, real.same_place) if real else (None, None, None))
    )
    return Evidence(
        images=reference.seen(drawn.images),
        base_images=reference.seen(reference.images),
        prompt_of=plan.prompt_of,
        texts=[text for text in reference.texts(reference.class_noun) for _ in range(num)],
        wanted=[noun | dict(prompt.facts) for prompt in plan.prompts for _ in range(num)],
        clip=evaluators.clip,
        encoder=evaluators.encoder,
        judges=evaluators.judges,
        class_images=reference.seen(drawn.class_images),
        base_class_images=reference.seen(reference.class_images),
        training=training,
        elsewhere=elsewhere,
        same_place=same_place,
    )


def predictions(reference: Reference, adapter: Named | None, base: Base | None) -> dict[str, Predictions]:
    """What the base and the customized model predict at every probe; S4 names the concept."""
    base, steps = base or reference.base, reference.plan.drawing.num_timesteps
    adapters, found = [adapter] if adapter else [], {}
    for name, probed in reference.probes.items():
        conditioning = reference.conditioning(probed.texts, {}, base)
        if adapter and name == "s4":
            texts = reference.texts(f"<{adapter.concept_name}>")
            conditioning = reference.conditioning(texts, {adapter.concept_name: adapter.words}, base)
        with base.customized(*adapters) as denoiser:
            # Another batch size than the reference's: what rounding alone makes shows in the base's own row.
            eps = metrics.eps_predictions(
                denoiser, base.noise_schedule, probed.probe, conditioning, steps, batch_size=16
            )
        found[name] = Predictions(
            probed.eps_0, eps, probed.eps_empty, probed.probe, reference.base.noise_schedule, probed.timesteps
        )
    return found


def _in_order(found: Mapping[str, Figure]) -> dict[str, Figure]:
    """As tables have them; facts that only a person's own prompts ask for come last."""
    return {name: found[name] for name in [*BY_NAME, *found] if name in found}
