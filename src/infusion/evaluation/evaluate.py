"""A base, an adapter, its concept's pictures -> every measure of what was learnt and of what was broken."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infusion import metrics
from infusion.base import Base
from infusion.base.customization import Named
from infusion.errors import UserError
from infusion.evaluation.drawing import decoded, draw
from infusion.evaluation.reference import Features, Reference, distances
from infusion.files import whole_file
from infusion.intervals import Figure, jackknife, mean
from infusion.metrics.encoders import Clip, ImageEncoder

_THE_SAME = 0.9999  # cosine of an image that is among the training images twice
LATENTS_NAME = "latents.safetensors"


def chances(reference: Reference, customized: Features) -> dict[str, float]:
    """How often chance alone makes background, layout and style differ so much from the base's of other seeds.

    Of other seeds, because with the same ones the customized model's pictures are like the base's for their noise.
    Layouts are those of the pictures where a subject is found. What there are too few pictures to tell is left out.
    """
    base, prompt_of = reference.null_features, reference.plan.prompt_of
    found, base_found = (~np.isnan(some.layout).any(axis=1) for some in (customized, base))
    told = {
        "w2_background": metrics.chance(customized.background, base.background, prompt_of, prompt_of),
        "w2_layout": metrics.chance(
            customized.layout[found], base.layout[base_found], prompt_of[found], prompt_of[base_found]
        ),
        "w2_style": metrics.chance(customized.style, base.style, prompt_of, prompt_of),
    }
    return {name: value for name, value in told.items() if math.isfinite(value)}


def wasserstein(base: Features, customized: Features, prompt_of: np.ndarray) -> dict[str, Figure]:
    """The distances, with intervals over prompts (jackknife)."""

    @cache
    def of(rows: bytes) -> dict[str, float]:  # each set of rows is asked for once by every distance
        at = np.frombuffer(rows, dtype=np.int64).copy()  # torch wants to be able to write in it
        return distances(base.rows(at), customized.rows(at))

    def at(name: str) -> Callable[[np.ndarray], float]:
        return lambda rows: of(rows.tobytes())[name]

    names = of(np.arange(len(prompt_of)).tobytes())
    return {name: metrics.over_prompts(at(name), prompt_of) for name in names}


@dataclass(frozen=True)
class ConceptImages:
    """Real pictures of the concept, [K, 3, H, W] each.

    training: those trained on. elsewhere: others in other places, None where there are none. same_place: others in the
    place of the training pictures, or None. Where they are missing the training pictures among themselves stand in.
    """

    training: Tensor
    elsewhere: Tensor | None = None
    same_place: Tensor | None = None

    def scale(self, encoder: ImageEncoder, class_pictures: Tensor) -> metrics.Alignment:
        """Floor: the base's pictures of the class noun. Ceiling: other real pictures of the concept."""
        if self.elsewhere is not None:
            return metrics.Alignment.measured(encoder, self.training, class_pictures, self.elsewhere)
        floor = metrics.image_alignment(encoder, class_pictures, self.training).mean().item()
        return metrics.Alignment(floor, _to_each_other(encoder, self.training).nanmean().item())

    def never_nearer(self, clip: Clip) -> float:
        """The most that another real picture is like a training picture: what is more like one is a copy."""
        if self.same_place is not None:
            return metrics.nearest_reference(clip, self.same_place, self.training).cosine.max().item()
        cosines = _to_each_other(clip, self.training).nan_to_num(-1)
        return cosines[cosines < _THE_SAME].max().item() if (cosines < _THE_SAME).any() else math.inf


def _to_each_other(encoder: ImageEncoder | Clip, images: Tensor) -> Tensor:
    """Cosines of pictures to each other [K, K]; NaN to themselves."""
    features = encoder.encode_images(images)
    return (features @ features.T).fill_diagonal_(float("nan"))


@dataclass(frozen=True)
class Drawn:
    """What a model drew: pictures of the plan's prompts [N, 3, H, W] and of the plain class noun [M, 3, H, W].

    seconds_per_image: in time of the processor; None where the pictures were there already.
    """

    images: Tensor
    class_images: Tensor
    seconds_per_image: float | None = None


def drawn_with(reference: Reference, adapter: Named, folder: Path | None = None, base: Base | None = None) -> Drawn:
    """Everything that an adapter is asked to draw.

    Args:
        folder: where the latents are kept, and taken from where they are there already.
        base: what the adapter is laid on, where that is not the reference's: a model that another tool customized.
    """
    base, plan, name = base or reference.base, reference.plan, f"<{adapter.concept_name}>"
    path = folder / LATENTS_NAME if folder else None
    if path is None or not path.exists():
        started = time.process_time()
        latents = draw(base, plan, reference.texts(name), reference.own_seeds, [adapter], reference.report)
        seconds = torch.tensor((time.process_time() - started) / len(latents))
        of_class = draw(base, plan, [reference.class_text], reference.class_seeds, [adapter], reference.report)
        tensors = {"images": latents.contiguous(), "class_images": of_class.contiguous(), "seconds": seconds}
        if path:
            with whole_file(path) as temporary:
                save_file(tensors, temporary)
    if path:
        tensors = load_file(path)
    images, class_images = (decoded(base, tensors[key]) for key in ("images", "class_images"))
    return Drawn(images, class_images, tensors["seconds"].item())


@dataclass(frozen=True)
class Evaluation:
    """All measures of one customized model by name, and what was drawn.

    measures: with intervals over prompts; those that the evaluators or the pictures given cannot tell are left out.
    followed: [N], the share of its prompt's facts that each picture shows, or without judges their cosine. score: [N],
    how good each is: the mean of identity and followed, in [0, 1]. chances: how often chance alone makes background,
    layout and style differ so much; empty where noise is shared. nearest: the training picture that each is
    most like; None without training pictures. never_nearer: the most that other real pictures are like one.
    """

    measures: dict[str, Figure]
    drawn: Drawn
    followed: Tensor
    score: Tensor
    chances: Mapping[str, float]
    nearest: metrics.Nearest | None = None
    never_nearer: float = math.inf


def evaluate(
    reference: Reference,
    adapter: Named | None,
    real: ConceptImages | None,
    drawn: Drawn | None = None,
    base: Base | None = None,
) -> Evaluation:
    """Draw with an adapter and measure; with None, the base itself with the class noun in the concept's place.

    Args:
        real: pictures of the concept; without them identity, copies and collapse are not measured.
        drawn: pictures that were drawn already.
        base: what the adapter is laid on, where that is not the reference's: a model that another tool customized.
    """
    if drawn is None:
        drawn = (
            drawn_with(reference, adapter, base=base) if adapter else Drawn(reference.images, reference.class_images)
        )
    features, prompt_of = Features.of(reference, drawn.images), reference.plan.prompt_of
    measures, satisfied = prompts_kept(reference, drawn.images)
    score, nearest, never_nearer = satisfied, None, math.inf
    if real:
        clip = reference.evaluators.clip
        found, identity = learnt(reference, real, drawn)
        nearest = metrics.nearest_reference(clip, drawn.images, real.training)
        never_nearer = real.never_nearer(clip)
        measures |= found | _copied(reference, real, drawn.images, nearest.cosine > never_nearer)
        score = satisfied if identity is None else (identity.clamp(0, 1) + satisfied) / 2
    measures["subject_found"] = mean_over_prompts(features.subject_found, prompt_of)
    measures |= wasserstein(reference.features, features, prompt_of)
    measures |= _class_kept(reference, drawn.class_images) | _divergences(reference, adapter, base)
    by_chance = {} if reference.shared_noise else chances(reference, features)
    return Evaluation(measures, drawn, satisfied, score, by_chance, nearest, never_nearer)


def mean_over_prompts(values: Tensor, prompt_of: np.ndarray) -> Figure:
    """Mean of values [N], with its interval over prompts."""
    prompts, at = np.unique(prompt_of, return_inverse=True)
    sums = np.bincount(at, values.double().numpy(), minlength=len(prompts))
    return mean(sums / np.bincount(at))


def prompts_kept(reference: Reference, images: Tensor) -> tuple[dict[str, Figure], Tensor]:
    """Text alignment; by the judges, the facts that the prompts ask for, and each picture's share of them [N]."""
    evaluators, plan = reference.evaluators, reference.plan
    texts = [text for text in reference.texts(reference.class_noun) for _ in range(plan.drawing.num_seeds)]
    cosines = metrics.text_alignment(evaluators.clip, images, texts)
    measures = {"text_alignment": mean_over_prompts(cosines, plan.prompt_of)}
    if not evaluators.judges:
        return measures, cosines
    noun = {"class": reference.class_noun}
    wanted = [noun | prompt.facts for prompt in plan.prompts for _ in range(plan.drawing.num_seeds)]  # type: ignore[operator]
    found = metrics.satisfied_facts(evaluators.judges, images, wanted)
    measures["facts"] = mean_over_prompts(found.satisfied, plan.prompt_of)
    for fact, asked, holds in zip(metrics.FACTS, found.asked.T, found.holds.T, strict=True):
        if asked.any():
            measures[f"facts_{fact}"] = mean_over_prompts(holds[asked], plan.prompt_of[asked.numpy()])
    return measures, found.satisfied


def learnt(reference: Reference, real: ConceptImages, drawn: Drawn) -> tuple[dict[str, Figure], Tensor | None]:
    """Identity between floor and ceiling, of each picture [N] too; and that of pictures of the plain class noun.

    Prompt by prompt it is held against the base's own pictures of that prompt. Without identity where floor and ceiling
    cannot be told apart.
    """
    encoder, prompt_of = reference.evaluators.encoder, reference.plan.prompt_of
    cosines, of_base, of_class, of_base_class = (
        metrics.image_alignment(encoder, some, real.training)
        for some in (drawn.images, reference.images, drawn.class_images, reference.class_images)
    )
    measures = {"image_alignment": mean_over_prompts(cosines, prompt_of)}
    try:
        scale = real.scale(encoder, reference.images)
    except UserError:
        return measures, None
    floor = np.bincount(prompt_of, of_base.double().numpy()) / np.bincount(prompt_of)  # [P]
    identity = (cosines.double() - torch.from_numpy(floor[prompt_of])) / (scale.ceiling - scale.floor)
    leak = (of_class - of_base_class) / (scale.ceiling - scale.floor)
    measures |= {"identity": mean_over_prompts(identity, prompt_of), "class_leak": mean(leak.numpy())}
    return measures, identity


def _copied(reference: Reference, real: ConceptImages, images: Tensor, copies: Tensor) -> dict[str, Figure]:
    """Collapse onto the training pictures, and the share of pictures nearer to one than real other pictures are."""
    clip, prompt_of = reference.evaluators.clip, reference.plan.prompt_of
    own, base, training = (clip.encode_images(some) for some in (images, reference.images, real.training))
    return {
        "collapse": metrics.over_prompts(
            lambda rows: metrics.collapse_ratio(own[rows], base[rows], training), prompt_of
        ),
        "copied": mean_over_prompts(copies, prompt_of),
    }


def _class_kept(reference: Reference, class_images: Tensor) -> dict[str, Figure]:
    """How different pictures of the plain class noun are, over the base's."""
    clip = reference.evaluators.clip
    own, base = clip.encode_images(class_images), clip.encode_images(reference.class_images)
    ratio = jackknife(lambda kept: metrics.class_diversity(own[kept]) / metrics.class_diversity(base[kept]), len(own))
    return {"class_diversity": ratio}


def _divergences(reference: Reference, adapter: Named | None, base: Base | None) -> dict[str, Figure]:
    """The latent Fisher divergence on every set of prompts; S4 names the concept, and looks outside the subject."""
    base, steps = base or reference.base, reference.plan.drawing.num_timesteps
    adapters = [adapter] if adapter else []
    measures = {}
    for name, probed in reference.probes.items():
        conditioning = reference.told(probed.texts, {}, base)
        if adapter and name == "s4":
            texts = reference.texts(f"<{adapter.concept_name}>")
            conditioning = reference.told(texts, {adapter.concept_name: adapter.words}, base)
        with base.customized(*adapters) as denoiser:
            # Another batch size than the reference's: what rounding alone makes shows in the base's own row.
            eps = metrics.eps_predictions(
                denoiser, base.noise_schedule, probed.probe, conditioning, steps, batch_size=16
            )
        found = metrics.latent_fisher_divergence(
            probed.eps_0, eps, probed.eps_empty, probed.probe, reference.base.noise_schedule, probed.timesteps
        )
        for kind, figure in found.figures().items():
            measures[f"lfd_{name}" if kind == "eps" else f"lfd_{name}_{kind}"] = figure
    return measures
