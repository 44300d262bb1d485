"""Words on a command line -> a training, of one concept or of many: `infusion train`."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from infusion.cli.method_settings import method_and_training
from infusion.cli.options import BASES, BaseConfigOption, DeviceOption
from infusion.cli.prepare import CropOption, SegmenterOption
from infusion.cli.train_options import TrainOptions

Setting = Annotated[str | None, typer.Option(metavar="VALUE", show_default=False)]


def train(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            help="The folder of images; or a folder of such folders, or a JSON list, of concepts to learn together.",
            show_default=False,
        ),
    ],
    class_noun: Annotated[
        str | None,
        typer.Option(
            help="What kind of thing it is, in the base model's words: cat. [default: what the folder says, if it does]"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="What prompts call it: my-cat, for <my-cat>. [default: the folder's name]"),
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", show_default=False)] = None,
    base: Annotated[str, typer.Option(metavar="NAME", help=BASES)] = "toybox",
    base_config: BaseConfigOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The adapter file, or of several concepts their folder. [default: NAME.safetensors, or adapters]",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Masks with the names of the images; white is learnt."),
    ] = None,
    segmenter: SegmenterOption = "auto",
    crop: CropOption = "square",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in a TOML file: one name = value a line.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, also those without a flag; repeatable."),
    ] = None,
    # Settings: None is "not given". Their explanation and defaults stand in their dataclasses.
    learning_rate: Setting = None,
    max_train_steps: Setting = None,
    layers: Setting = None,
    streams: Setting = None,
    mixing_probability: Setting = None,
    keys: Annotated[bool | None, typer.Option("--keys/--no-keys", show_default=False)] = None,
    masked_loss: Annotated[bool | None, typer.Option("--masked-loss/--no-masked-loss", show_default=False)] = None,
    train_batch_size: Setting = None,
    gradient_accumulation_steps: Setting = None,
    lr_scheduler: Setting = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", show_default=False)] = None,
    seed: Setting = None,
    checkpointing_steps: Setting = None,
    mixed_precision: Annotated[
        str,
        typer.Option(help="Precision of the frozen weights: no, fp16 or bf16; what is learnt stays in fp32."),
    ] = "no",
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing", help="Less memory, more time: layers run again for gradients."),
    ] = False,
    preview_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps between preview images. [default: none]")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on from the checkpoint of an interrupted run, if there is one.")
    ] = True,
    stop: Annotated[
        str,
        typer.Option(
            help='Which step is kept: "last", or "auto": every 25 steps the training looks at images of its own, '
            "keeps the best step, and ends when nothing gets better."
        ),
    ] = "last",
    clip: Annotated[
        str | None, typer.Option(metavar="NAME", help="The CLIP that --stop auto looks with. [default: by the base]")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="NAME", help="The encoder that --stop auto looks with. [default: by the base]")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw images and show them on one HTML page.")
    ] = None,
    report_to: Annotated[
        str | None, typer.Option(metavar="TRACKER", help="tensorboard, wandb, trackio ...: where losses are shown.")
    ] = None,
    concepts_per_batch: Annotated[
        int, typer.Option(min=1, help="Of several concepts, how many are trained at a time, each with its own batch.")
    ] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print what would be done.")] = False,
    device: DeviceOption = None,
) -> None:
    """Learn one concept from a folder of images, or many from a folder of such folders."""
    from infusion.cli.train_folder import train_folder
    from infusion.cli.train_one import train_one
    from infusion.concepts.list import holds_concepts

    given = {field.name: context.params[field.name] for field in dataclasses.fields(TrainOptions) if field.init}
    options = TrainOptions(**given)
    settings = partial(method_and_training, context.params, set_ or [], config)
    (train_folder if holds_concepts(folder) else train_one)(options, settings)
