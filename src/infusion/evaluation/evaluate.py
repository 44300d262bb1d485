"""A base, an adapter, its concept's pictures -> every measure of what was learnt and of what was broken."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from infusion import metrics
from infusion.base import Base, Conditioning
from infusion.base.cross_attention import cross_attentions
from infusion.base.customization import Named
from infusion.base.latents import decode_latents
from infusion.base.prompts import class_prompt
from infusion.concepts.masks import attention_masks
from infusion.errors import UserError
from infusion.files import whole_file
from infusion.generation.pipeline import sample_prompts
from infusion.generation.sampling import few_step_scheduler
from infusion.intervals import Figure, jackknife, mean
from infusion.metrics import Probe
from infusion.metrics.encoders import Clip, ImageEncoder
from infusion.settings import setting, validate
from infusion.toybox.judges import Judges

_NULL_SEEDS = 1000  # or as many as pictures, where they are more; sets that are not compared may share seeds
_CLASS_SEEDS = 2000
_PRIOR_SEEDS = 3000
_THE_SAME = 0.9999  # cosine of a picture that is among the training pictures twice
LATENTS_NAME = "latents.safetensors"


@dataclass(frozen=True)
class Wanted:
    """A prompt, {} for the concept, and the facts it asks for, by the names of `metrics.FACTS`."""

    text: str
    facts: Mapping[str, str | int]


@dataclass(frozen=True)
class Drawing:
    """How much is drawn and asked: the part of a plan that a person sets."""

    num_seeds: int = setting(8, help="Pictures of every prompt.", minimum=1, maximum=1000)
    num_class_pictures: int = setting(32, help="Pictures of the plain class noun.", minimum=3, maximum=1000)
    num_inference_steps: int = setting(6, help="Steps of DPM-Solver++.", minimum=1, maximum=1000)
    guidance_scale: float = setting(5.0, help="Classifier-free guidance; 1 is none.", minimum=0)
    latents_per_prompt: int = setting(1, help="Latents of the latent Fisher divergence.", minimum=1, maximum=1000)
    num_timesteps: int = setting(5, help="Timesteps of the latent Fisher divergence.", minimum=1, maximum=1000)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Plan:
    """What is drawn and what is asked, of every model alike.

    prompts: with the concept, and with the class noun in its place. unrelated, siblings: prompts of S1 and S2, without
    concept and class noun.
    """

    prompts: tuple[Wanted, ...]
    unrelated: tuple[str, ...]
    siblings: tuple[str, ...]
    drawing: Drawing = field(default_factory=Drawing)

    @property
    def prompt_of(self) -> np.ndarray:
        """[N] number of the prompt of every picture: for each prompt, one picture per seed."""
        return np.repeat(np.arange(len(self.prompts)), self.drawing.num_seeds)


@dataclass(frozen=True)
class Witnesses:
    """Who looks at pictures: encoders that no method is trained with, and the toybox's judges where it is the world."""

    clip: Clip
    encoder: ImageEncoder
    judges: Judges | None = None

    def check_can_see(self, base: Base) -> None:
        """Raise UserError if nobody could say where the subject is in pictures of this base."""
        if not self.judges and not cross_attentions(base.network):
            raise UserError(
                f'In "{base.id}" image and text attend jointly, so its attention cannot say where the subject is in '
                "pictures, which measuring needs; models with cross-attention can be measured."
            )

    def subject(self, base: Base, images: Tensor, class_noun: str) -> Tensor:
        """Where the subject is in pictures [N, 3, H, W]: [N, H, W] in [0, 1], by the judges or the base's attention."""
        if self.judges:
            return metrics.subject_masks(self.judges, images, class_noun)
        found = attention_masks(base, [as_image(image) for image in images], class_noun)
        return torch.stack([torch.from_numpy(np.array(mask)).float() / 255 for mask in found])

    def foreground(self, base: Base, images: Tensor, class_noun: str) -> Tensor:
        """Where anything but the background is: for the judges, toys of every class, also those drawn by mistake."""
        if self.judges:
            return self.judges.foreground(images).cpu()
        return self.subject(base, images, class_noun)


def draw(
    base: Base,
    plan: Plan,
    texts: Sequence[str],
    seeds: Sequence[int] | Sequence[Sequence[int]],
    adapters: Sequence[Named] = (),
    report: Callable[[int], None] | None = None,
    lock_until: float = 1.0,
) -> Tensor:
    """Latents [N, C, H, W] of every text with every seed, in few steps.

    Args:
        seeds: of every text alike, or a list for each text.
        lock_until: as `sample_prompts` has it.
        report: called with how many were drawn, after every batch.
    """
    batches = sample_prompts(
        base,
        texts,
        adapters,
        seeds,
        num_inference_steps=plan.drawing.num_inference_steps,
        guidance_scale=plan.drawing.guidance_scale,
        batch_size=16,
        scheduler=few_step_scheduler(base),
        lock_until=lock_until,
    )
    drawn = []
    for latents in batches:
        drawn.append(latents)
        if report:
            report(len(latents))
    return torch.cat(drawn)


def pictures(base: Base, latents: Tensor) -> Tensor:
    """Latents -> pictures [N, 3, H, W] in [0, 1], rounded as a file rounds them."""
    return to_tensor([image for some in latents.split(16) for image in decode_latents(base, some)])


def as_image(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] in [0, 1] -> PIL."""
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def to_tensor(images: Sequence[object]) -> Tensor:
    """PIL pictures of one size -> [N, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class Probed:
    """A probe, what the base is told there, and what it predicts: with the prompt and with none."""

    probe: Probe
    texts: tuple[str, ...]
    eps_0: Tensor
    eps_empty: Tensor
    timesteps: Tensor


class Reference:
    """The base model's own pictures and predictions for a class noun: what every customized model is held against.

    Everything is drawn when it is first asked for, and kept; in `folder`, where there is one, for other processes too.
    report: called with how many pictures were drawn, here and in `evaluate`. first_seed: of the base's pictures;
    another one for draws that are to be independent of these. shared_noise: all prompts begin with the same few noises,
    as those of a benchmark do; without it every picture begins with its own, and intervals over prompts count what
    other seeds would give.
    """

    def __init__(
        self,
        base: Base,
        class_noun: str,
        plan: Plan,
        witnesses: Witnesses,
        report: Callable[[int], None] | None = None,
        folder: Path | None = None,
        first_seed: int = 0,
        shared_noise: bool = False,
    ) -> None:
        witnesses.check_can_see(base)
        self.base = base
        self.class_noun = class_noun
        self.plan = plan
        self.witnesses = witnesses
        self.report = report
        self.folder = folder
        self.first_seed = first_seed
        self.shared_noise = shared_noise

    def seeds(self, first: int, num: int, num_texts: int) -> list[range]:
        """Of `num` pictures of every text."""
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

    @cached_property
    def images(self) -> Tensor:
        return self._drawn("images", self.texts(self.class_noun), self.own_seeds)

    @cached_property
    def null_images(self) -> Tensor:
        """The same prompts with other seeds: what finite samples alone make of every distance."""
        first = self.first_seed + max(_NULL_SEEDS, len(self.plan.prompt_of))
        seeds = self.seeds(first, self.plan.drawing.num_seeds, len(self.plan.prompts))
        return self._drawn("null_images", self.texts(self.class_noun), seeds)

    @cached_property
    def class_images(self) -> Tensor:
        return self._drawn("class_images", [self.class_text], self.class_seeds)

    @property
    def class_seeds(self) -> range:
        return range(_CLASS_SEEDS, _CLASS_SEEDS + self.plan.drawing.num_class_pictures)

    def prior_latents(self, num: int) -> Tensor:
        """Pictures of the class for prior preservation, of seeds that nothing is measured on."""
        seeds = range(_PRIOR_SEEDS, _PRIOR_SEEDS + num)
        return self._kept(f"prior_latents_{num}", lambda: draw(self.base, self.plan, [self.class_text], seeds))

    @cached_property
    def features(self) -> "Features":
        return Features.of(self, self.images)

    @cached_property
    def nulls(self) -> dict[str, float]:
        """What every Wasserstein distance is between the base and itself with other seeds."""
        return distances(self.features, self.null_features)

    @cached_property
    def null_features(self) -> "Features":
        return Features.of(self, self.null_images)

    def _drawn(self, name: str, texts: Sequence[str], seeds: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        latents = self._kept(name, lambda: draw(self.base, self.plan, texts, seeds, report=self.report))
        return pictures(self.base, latents)

    def kept_path(self, name: str) -> Path:
        """Where something drawn is kept."""
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def _kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` makes, or made before."""
        if self.folder is None:
            return make()
        path = self.kept_path(name)
        if not path.exists():
            tensor = make()
            with whole_file(path) as temporary:
                save_file({name: tensor.contiguous()}, temporary)
        return load_file(path)[name]

    @cached_property
    def probes(self) -> dict[str, Probed]:
        """S1 unrelated prompts, S2 sibling classes, S3 the class noun, S4 the class noun where the concept will be."""
        nouns = tuple(self.texts(self.class_noun))
        asked = {"s1": self.plan.unrelated, "s2": self.plan.siblings, "s3": nouns}
        probes = {name: self._probed(name, texts) for name, texts in asked.items()}
        third = probes["s3"]
        drawn = pictures(self.base, third.probe.latents)
        masks = self.witnesses.foreground(self.base, drawn, self.class_noun)
        weights = metrics.outside_subject(masks, third.probe.latents.shape[-2:])  # type: ignore[arg-type]
        weights = torch.where(weights.sum(dim=(1, 2, 3), keepdim=True) > 0, weights, torch.ones_like(weights))
        outside = Probe(third.probe.latents, third.probe.prompt_of, weights)
        probes["s4"] = Probed(outside, third.texts, third.eps_0, third.eps_empty, third.timesteps)
        return probes

    def _probed(self, name: str, texts: tuple[str, ...]) -> Probed:
        num, steps = self.plan.drawing.latents_per_prompt, self.plan.drawing.num_timesteps
        seeds = self.seeds(0, num, len(texts))
        latents = self._kept(name, lambda: draw(self.base, self.plan, texts, seeds, report=self.report))
        probe = Probe(latents, torch.arange(len(texts)).repeat_interleave(num))
        conditioning, schedule = self.told(texts, {}), self.base.noise_schedule
        empty = self.base.encode([""]).rows([0] * len(conditioning))

        def predicted(told: Conditioning) -> Tensor:
            return metrics.eps_predictions(self.base, schedule, probe, told, steps)

        return Probed(
            probe,
            texts,
            self._kept(f"{name}_eps", lambda: predicted(conditioning)),
            self._kept(f"{name}_eps_empty", lambda: predicted(empty)),
            metrics.stratified_timesteps(schedule, probe, steps, seed=0),
        )

    def told(self, texts: Sequence[str], words: Mapping[str, str], base: Base | None = None) -> Conditioning:
        """The conditioning of a probe's latents, by `base` or another model: each text as often as it has latents."""
        num = self.plan.drawing.latents_per_prompt
        return (base or self.base).encode(texts, words).rows([row for row in range(len(texts)) for _ in range(num)])


@dataclass(frozen=True)
class Features:
    """What Wasserstein distances are taken between, of N pictures each: whole, background, layout, style."""

    whole: Tensor
    background: Tensor
    layout: np.ndarray
    style: Tensor

    @classmethod
    def of(cls, reference: Reference, images: Tensor) -> "Features":
        witnesses, base, noun = reference.witnesses, reference.base, reference.class_noun
        foreground = witnesses.foreground(base, images, noun)
        return cls(
            whole=witnesses.clip.encode_images(images),
            background=witnesses.clip.encode_images(metrics.without_subject(images, foreground)),
            layout=metrics.layout(witnesses.subject(base, images, noun)),
            style=metrics.style_features(witnesses.clip, images),
        )

    @property
    def subject_found(self) -> Tensor:
        """[N] 1 where a subject is seen: of the others there is no layout."""
        return torch.from_numpy(~np.isnan(self.layout).any(axis=1)).float()

    def rows(self, rows: np.ndarray) -> "Features":
        return Features(self.whole[rows], self.background[rows], self.layout[rows], self.style[rows])

    @classmethod
    def joined(cls, first: "Features", second: "Features") -> "Features":
        return cls(
            torch.cat([first.whole, second.whole]),
            torch.cat([first.background, second.background]),
            np.concatenate([first.layout, second.layout]),
            torch.cat([first.style, second.style]),
        )


def distances(base: Features, customized: Features) -> dict[str, float]:
    """Our definition of the Wasserstein metric, in three views, and its parts."""
    return {
        "w2_gaussian": metrics.gaussian_w2(base.whole, customized.whole),
        "w2_exact": metrics.exact_w2(base.whole, customized.whole),
        "w2_sliced": metrics.sliced_w2(base.whole, customized.whole),
        "w2_background": metrics.exact_w2(base.background, customized.background),
        "w2_layout": metrics.layout_w2(base.layout, customized.layout).w2,
        "w2_style": metrics.exact_w2(base.style, customized.style),
    }


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
class ConceptPictures:
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
    images, class_images = (pictures(base, tensors[key]) for key in ("images", "class_images"))
    return Drawn(images, class_images, tensors["seconds"].item())


@dataclass(frozen=True)
class Evaluation:
    """All measures of one customized model by name, and what was drawn.

    measures: with intervals over prompts; those that the witnesses or the pictures given cannot tell are left out.
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
    real: ConceptPictures | None,
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
        clip = reference.witnesses.clip
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
    witnesses, plan = reference.witnesses, reference.plan
    texts = [text for text in reference.texts(reference.class_noun) for _ in range(plan.drawing.num_seeds)]
    cosines = metrics.text_alignment(witnesses.clip, images, texts)
    measures = {"text_alignment": mean_over_prompts(cosines, plan.prompt_of)}
    if not witnesses.judges:
        return measures, cosines
    noun = {"class": reference.class_noun}
    wanted = [noun | prompt.facts for prompt in plan.prompts for _ in range(plan.drawing.num_seeds)]  # type: ignore[operator]
    found = metrics.satisfied_facts(witnesses.judges, images, wanted)
    measures["facts"] = mean_over_prompts(found.satisfied, plan.prompt_of)
    for fact, asked, holds in zip(metrics.FACTS, found.asked.T, found.holds.T, strict=True):
        if asked.any():
            measures[f"facts_{fact}"] = mean_over_prompts(holds[asked], plan.prompt_of[asked.numpy()])
    return measures, found.satisfied


def learnt(reference: Reference, real: ConceptPictures, drawn: Drawn) -> tuple[dict[str, Figure], Tensor | None]:
    """Identity between floor and ceiling, of each picture [N] too; and that of pictures of the plain class noun.

    Prompt by prompt it is held against the base's own pictures of that prompt. Without identity where floor and ceiling
    cannot be told apart.
    """
    encoder, prompt_of = reference.witnesses.encoder, reference.plan.prompt_of
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


def _copied(reference: Reference, real: ConceptPictures, images: Tensor, copies: Tensor) -> dict[str, Figure]:
    """Collapse onto the training pictures, and the share of pictures nearer to one than real other pictures are."""
    clip, prompt_of = reference.witnesses.clip, reference.plan.prompt_of
    own, base, training = (clip.encode_images(some) for some in (images, reference.images, real.training))
    return {
        "collapse": metrics.over_prompts(
            lambda rows: metrics.collapse_ratio(own[rows], base[rows], training), prompt_of
        ),
        "copied": mean_over_prompts(copies, prompt_of),
    }


def _class_kept(reference: Reference, class_images: Tensor) -> dict[str, Figure]:
    """How different pictures of the plain class noun are, over the base's."""
    clip = reference.witnesses.clip
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
