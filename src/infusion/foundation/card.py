"""What gates measured + what the training recorded -> the model card beside the weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infusion.errors import UserError
from infusion.files import whole_file
from infusion.intervals import Figure, Gate, Measured
from infusion.pages.numbers import format_in_unit
from infusion.toybox.scene import HELD_OUT_SCENES


def verdict(gate: Gate, figure: Figure) -> str:
    return {None: "", True: "green", False: "RED"}[gate.passed(figure)]


def as_json(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    return [gate._asdict() | figure._asdict() | {"passed": gate.passed(figure)} for gate, figure in measured]


def from_json(rows: Sequence[dict[str, Any]]) -> list[Measured]:
    return [
        (Gate(row["name"], row["at_least"], row["unit"]), Figure(row["value"], row["low"], row["high"], row["num"]))
        for row in rows
    ]


def table(measured: Sequence[Measured]) -> str:
    """In Markdown."""
    lines = ["| gate | at least | measured | 95% interval | n | |", "|---|---|---|---|---|---|"]
    for gate, figure in measured:
        least = "" if gate.at_least is None else format_in_unit(gate.at_least, gate.unit)
        value, low, high = (format_in_unit(number, gate.unit) for number in figure[:3])
        told = f"{value} | {low} to {high} | {figure.num}"
        lines.append(f"| {gate.name} | {least} | {told} | {verdict(gate, figure)} |")
    return "\n".join(lines)


def promise(curve: Sequence[Sequence[float]]) -> str:
    """What the training curve of (images, held-out loss) says of going on: a line through loss over log2(images)."""
    late = np.array([(images, loss) for images, loss in curve if images >= curve[-1][0] / 4], dtype=float)
    if len(late) < 3:
        return "The training was too short to say what more of it would bring."
    slope, _ = np.polyfit(np.log2(late[:, 0]), late[:, 1], 1)
    trend = f"fell by {-slope:.3f} with every doubling of the images seen" if slope < 0 else "no longer fell"
    return f"Over the last three quarters of the training the held-out loss {trend}; it ended at {late[-1, 1]:.4f}."


def write_gates(path: Path, measured: Sequence[Measured], how: dict[str, Any]) -> None:
    with whole_file(path) as file:
        file.write_text(json.dumps({"how": how, "gates": as_json(measured)}, indent=1) + "\n", encoding="utf-8")


def check_record(model_dir: Path) -> None:
    """Raises UserError if there is no record of the training that a card could be written from."""
    try:
        missing = {"size_px", "latent_channels", "vae", "denoiser"} - json.loads(
            (model_dir / "record.json").read_text()
        ).keys()
    except (OSError, ValueError):
        missing = {"record.json"}
    if missing:
        raise UserError(
            f"No model card can be written for {model_dir}: its training left no {', '.join(sorted(missing))} there. "
            "Leave out --write."
        )


def write_card(model_dir: Path) -> None:
    """The model card `README.md`, beside the weights it tells of."""
    with whole_file(model_dir / "README.md") as file:
        file.write_text(model_card(model_dir), encoding="utf-8")


def model_card(model_dir: Path) -> str:
    """Every figure comes from `record.json`, which the training wrote, and `gates.json`, which the gates wrote."""
    record = json.loads((model_dir / "record.json").read_text())
    vae, denoiser = record["vae"], record["denoiser"]
    gates = model_dir / "gates.json"
    lines = (
        _gates_chapter(json.loads(gates.read_text()), denoiser["held_out"]) if gates.exists() else "Not measured yet."
    )
    curve = "\n".join(f"| {images:,} | {loss:.4f} |" for images, loss in denoiser["held_out"])
    parts = denoiser["parameters"]
    return f"""# The toybox foundation model

A small latent text-to-image model of the world of `infusion.toybox`, in the layout of Stable Diffusion:
`StableDiffusionPipeline.from_pretrained(this_folder)` loads it. Pictures of {record["size_px"]} x {record["size_px"]}
pixels, v-prediction, {record["latent_channels"]} latent channels. It knows the toys, colours, places, styles and hours
of that world and nothing else. Made by `tools/pretrain_toybox.py`.

## Gates

{lines}

## Training

{denoiser["pictures"]:,} rendered scenes, each also mirrored; captions drawn anew from the scene at every presentation.
Scene seeds {HELD_OUT_SCENES.start:,} to {HELD_OUT_SCENES.stop - 1:,} are held out. In the loss, what shows toys counts
more than what is behind them, and the attention to the words of a toy is pulled towards the toy's true mask (weight
{denoiser["attention_weight"]}): the maps of a checkpoint of the wild are not trained so.

| | autoencoder | UNet and text encoder |
|---|---|---|
| parameters | {vae["parameters"]:,} | {parts["unet"]:,} and {parts["text_encoder"]:,} |
| steps | {vae["steps"]:,} | {denoiser["steps"]:,} |
| images seen | | {denoiser["images"]:,} |
| minutes | {vae["seconds"] / 60:.0f} | {denoiser["seconds"] / 60:.0f} |
| machine | {vae["machine"]} | {denoiser["machine"]} |
| earlier trainings it started from | {_before(vae)} | {_before(denoiser)} |

| images seen | held-out denoising loss |
|---|---|
{curve}
"""


def _before(record: dict[str, Any]) -> str:
    """What earlier trainings left, if this one started from them."""
    steps, seconds = 0, 0.0
    while record := record.get("started_from", {}):
        steps, seconds = steps + record["steps"], seconds + record["seconds"]
    return f"{steps:,} steps, {seconds / 60:.0f} minutes" if steps else "nothing"


def _gates_chapter(gates: dict[str, Any], curve: Sequence[Sequence[float]]) -> str:
    measured = from_json(gates["gates"])
    red = [gate.name for gate, figure in measured if gate.passed(figure) is False]
    how = gates["how"]
    lines = f"""By `infusion toybox gates`: captions of held-out scenes, {how["num_inference_steps"]} steps, guidance
{how["guidance_scale"]}, one picture of each caption, its scene's seed; read by the judges "{how["judges"]}".

{table(measured)}
"""
    if red:
        lines += f"\nRed: {'; '.join(red)}. {promise(curve)} `docs/gpu.md` has the command that goes on.\n"
    return lines
