"""A finished training -> the page that shows what it did: base and customized at the same seeds."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from PIL import Image
from torch import Tensor

from infusion.base import Base
from infusion.base.latents import decode_latents
from infusion.concepts.concept import Concept
from infusion.concepts.crop import cropped
from infusion.concepts.masks import SubjectMask
from infusion.generation.pipeline import sample_prompts
from infusion.methods.adapter import Adapter
from infusion.pages.numbers import format_seconds
from infusion.pages.training_page import Comparison, Page, Preview, TrainingImage, Untouched, describe_run
from infusion.versions import versions

COMPARED = (
    "a {} on the beach",
    "a {} in the snow",
    "a {} in front of a brick wall",
    "a {} in the forest",
    "a {} on a wooden floor",
    "a {} in the desert",
    "a {} under the night sky",
    "a {} in the water",
    "a photo of a {}",
)
"""Prompts for a concept in new places."""

UNTOUCHED = (
    "a {} on the beach",
    "a blue {} in the snow",
    "a red car in front of a brick wall",
    "a duck in the forest",
)
"""Prompts that do not name the concept; {} is the plain class noun."""


@dataclass
class TrainingRecord:
    """What there is to tell of a training, collected while it runs."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    seconds: float = 0.0
    images_per_second: float = 0.0
    file_bytes: int = 0
    kept_step: int | None = None  # where the stop rule chose one


@torch.no_grad()
def compare(
    base: Base,
    adapter: Adapter,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] = range(4),
    **sampling: float,
) -> tuple[list[Comparison], list[Untouched]]:
    """Draw prompts with and without the adapter, at the same seeds and in the same batches.

    Prompts with and without the concept are drawn together, so that the untouched ones are measured beside customized
    neighbours. The difference is that of the latents, before they are rounded to an image.

    Args:
        prompts: {} stands for the concept; by default `COMPARED`.
        sampling: settings of `sample_prompts`.
    """
    prompts = COMPARED if prompts is None else prompts
    placeholder = f"<{adapter.concept_name}>"
    others = [prompt.format(adapter.class_noun) for prompt in UNTOUCHED]
    plain = [prompt.format(adapter.class_noun) for prompt in prompts] + others
    named = [prompt.format(placeholder) for prompt in prompts] + others

    def draw(texts: Sequence[str], *adapters: Adapter) -> Tensor:
        latents = torch.cat(list(sample_prompts(base, texts, adapters, seeds, **sampling)))  # type: ignore[arg-type]
        return latents.unflatten(0, (len(texts), len(seeds)))

    before, after = draw(plain), draw(named, adapter)
    comparisons = [
        Comparison(prompt, list(seeds), decode_latents(base, before[row]), decode_latents(base, after[row]))
        for row, prompt in enumerate(named[: len(prompts)])
    ]
    untouched = []
    for row, prompt in enumerate(others, start=len(prompts)):
        base_image, customized_image = decode_latents(base, torch.stack([before[row, 0], after[row, 0]]))
        difference = float((after[row] - before[row]).abs().max())
        untouched.append(
            Untouched(prompt, seeds[0], base_image, customized_image, difference, f"the latents, {len(seeds)} seeds")
        )
    return comparisons, untouched


def training_page(
    base: Base,
    adapter: Adapter,
    concept: Concept,
    masks: Sequence[SubjectMask] | None,
    record: TrainingRecord,
    settings: Mapping[str, object],
    crop: str = "square",
) -> Page:
    """Draw the comparisons and put everything there is to show of a training on a page.

    masks: None where the images were learnt whole. crop: in which shapes they were.
    """
    started = time.monotonic()
    comparisons, untouched = compare(base, adapter)
    seconds = time.monotonic() - started
    drawn = 2 * sum(len(comparison.seeds) for comparison in comparisons) * (1 + len(untouched) / len(comparisons))
    facts = {
        "file size": f"{record.file_bytes:,} bytes",
        "learnt parameters": f"{adapter.num_parameters:,}",
        "training": format_seconds(record.seconds),
        "training speed": f"{record.images_per_second:.1f} images/s",
        "drawing this page": f"{format_seconds(seconds)} for {drawn:.0f} images",
        "device": str(base.device),
    }
    about = {"method": adapter.method.name, "base": base.id, **asdict(adapter.method), **settings, **versions()}
    return Page(
        placeholder=concept.placeholder,
        class_noun=concept.class_noun,
        statement=describe_run(
            concept.class_noun,
            len(concept.images),
            record.kept_step or adapter.method.max_train_steps,
            record.seconds,
            adapter.num_parameters,
            record.file_bytes,
            untouched,
        ),
        training_images=_training_images([cropped(image, base, crop) for image in concept.images], masks),
        comparisons=comparisons,
        untouched=untouched,
        facts=facts,
        settings={name: str(value) for name, value in about.items()},
        notes=adapter.method.notes,
        loss_curve=record.losses,
        previews=record.previews,
    )


def _training_images(images: Sequence[Image.Image], masks: Sequence[SubjectMask] | None) -> Sequence[TrainingImage]:
    if masks is None:
        return [TrainingImage(image, None, "none", 1.0) for image in images]
    return [
        TrainingImage(image, mask.image, mask.source, mask.coverage) for image, mask in zip(images, masks, strict=True)
    ]
