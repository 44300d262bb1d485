"""Names on a command line -> the base model, and who looks at images."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from infusion.errors import UserError, all_at_once, nearest, noting
from infusion.evaluation.names import DEFAULT_CLIP, DEFAULT_ENCODER, TOYBOX, evaluator_names

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from infusion.base import Base
    from infusion.concepts.concept import Concept
    from infusion.evaluation.evaluators import Evaluators

PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}

BASES = '"toybox", a folder or hub id, or a checkpoint in one .safetensors file.'
BaseConfigOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="For a checkpoint in one file: a folder or hub id in the diffusers layout with its configuration. "
        "[default: diffusers' choice, on the Hub]",
    ),
]

DeviceOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps ... [default: the fastest there is]"),
]


def check_choice(name: str, given: str, options: Iterable[str]) -> None:
    if given not in options:
        raise UserError(f'{name} = "{given}" is not one of {", ".join(options)}.{nearest(given, options)}')


def load_base_on(
    console: "Console", name: str, device: str | None, dtype: str = "float32", config: str | None = None
) -> "Base":
    import torch

    from infusion.base import load_base
    from infusion.terminal import no_loading_bars

    no_loading_bars()
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UserError(f'There is no device "{device}" here. Leave --device out, or give cpu.') from error
    console.print(f"Loading {name} ...")
    return load_base(name, device, getattr(torch, dtype), config)


def watching_encoders(base: str, clip: str | None, encoder: str | None) -> tuple[str, str]:
    """Who looks at the images of a training or a run, to choose a step: a CLIP and an encoder.

    Set b of the toybox is left to judge the result.
    """
    defaults = ("toybox-a", "toybox-a") if base == TOYBOX else (DEFAULT_CLIP, DEFAULT_ENCODER)
    return clip or defaults[0], encoder or defaults[1]


def find_evaluators(
    console: "Console", base: str, clip: str | None, encoder: str | None, device: "torch.device"
) -> "tuple[Evaluators, dict[str, str | None]]":
    """Who looks at the images, and their names."""
    from infusion.evaluation import evaluators

    names = evaluator_names(base, clip, encoder)
    console.print(
        f"Loading {' and '.join(dict.fromkeys(name for name in (names['clip'], names['encoder']) if name))} ..."
    )
    return evaluators.find_evaluators(names, device), names


def check_captions(concept: "Concept") -> None:
    """Raise UserError for captions that name neither the placeholder nor the class noun, all at once."""
    from infusion.base.prompts import name_concept

    mistakes: list[str] = []
    for source, caption in zip(concept.sources, concept.captions, strict=True):
        with noting(mistakes, f"{source}: "):
            name_concept(caption or concept.placeholder, concept.placeholder, concept.class_noun)
    if mistakes:
        raise all_at_once(mistakes, "the captions")
