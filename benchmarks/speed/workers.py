"""A row of a comparison -> a program that makes its steps in turns; run by `run.py` in a process of its own."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from turns import Turns

from infusion import Infusion, TrainingSettings, customize, generate, load_base, load_concept, save_adapter, train
from infusion.base import Base
from infusion.methods.adapter import Adapter
from infusion.methods.adapter_file import load_adapter

PEERS = Path(__file__).parents[1] / "peers"
ENDLESS = 100_000  # steps: whoever measures stops before
CLASS_NOUN, NAME = "cat", "my-cat"
RATE = 1e-6  # random weights are not to be led anywhere
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PRECISIONS = {"fp32": "no", "bf16": "bf16"}
_TRAINING_SCRIPTS = {
    "textual-inversion": (
        "textual_inversion.py",
        {"train_data_dir": "", "placeholder_token": "<new1>", "initializer_token": CLASS_NOUN, "save_steps": ENDLESS},
    ),
    "lora": (
        "train_dreambooth_lora.py",
        {"instance_data_dir": "", "instance_prompt": f"a photo of a sks {CLASS_NOUN}"},
    ),
    "custom-diffusion": (
        "train_custom_diffusion.py",
        {
            "instance_data_dir": "",
            "instance_prompt": f"a photo of a <new1> {CLASS_NOUN}",
            "modifier_token": "<new1>",
            "initializer_token": "bit",
        },
    ),
}
Work = Callable[[Turns, dict[str, Any]], None]


def _base(told: dict[str, Any]) -> Base:
    return load_base(told["model_dir"], told["device"], _DTYPES[told["dtype"]])


def forward(turns: Turns, told: dict[str, Any]) -> None:
    """A plain pass of the network, without gradient."""
    base = _base(told)
    latents = torch.randn(told["batch_size"], *base.latent_shape).to(base.device, base.dtype)
    conditioning = base.encode([f"a photo of a {CLASS_NOUN}"] * told["batch_size"])
    timestep = torch.tensor(500, device=base.device)
    with torch.no_grad():
        turns.about["flops"] = _flops(lambda: base.predict(latents, timestep, conditioning))
        while True:
            base.predict(latents, timestep, conditioning)
            turns.done()


def _flops(work: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def infusion(turns: Turns, told: dict[str, Any]) -> None:
    """Our training step; after `warm_up_steps`, by when the picture and its mirror image have been encoded."""
    base = _base(told)
    concept = load_concept(told["picture_and_mask"], CLASS_NOUN, NAME)
    adapter = Infusion(learning_rate=RATE, max_train_steps=ENDLESS).adapter(base, concept)
    settings = TrainingSettings(
        train_batch_size=told["batch_size"],
        checkpointing_steps=ENDLESS,
    )
    for progress in train(base, adapter, concept, settings):
        if progress.step > told.get("warm_up_steps", 0):
            turns.done()


def diffusers_script(turns: Turns, told: dict[str, Any]) -> None:
    """The step of one of diffusers' training scripts, which is run as it is."""
    from accelerate.optimizer import AcceleratedOptimizer

    sys.path.insert(0, str(PEERS))
    from launch import launch

    make_step = AcceleratedOptimizer.step

    def make_step_in_turn(optimizer: AcceleratedOptimizer, *args: Any, **kwargs: Any) -> None:
        make_step(optimizer, *args, **kwargs)
        turns.done()

    AcceleratedOptimizer.step = make_step_in_turn
    script, arguments = _TRAINING_SCRIPTS[told["script"]]
    pictures = {name: told["pictures"] for name, value in arguments.items() if value == ""}
    arguments = (
        arguments
        | pictures
        | {
            "pretrained_model_name_or_path": told["model_dir"],
            "resolution": told["size_px"],
            "train_batch_size": told["batch_size"],
            "learning_rate": RATE,
            "max_train_steps": ENDLESS,
            "checkpointing_steps": ENDLESS,
            "mixed_precision": _PRECISIONS[told["dtype"]],
            "seed": 0,
            "output_dir": str(Path(told["work"]) / told["script"]),
        }
    )
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    launch(Path(told["scripts"]) / script, words)


def _any_adapter(base: Base, told: dict[str, Any], name: str = NAME) -> Adapter:
    """A concept of random residuals."""
    adapter = Infusion().adapter(base, load_concept(told["picture_and_mask"], CLASS_NOUN, name))
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=0.01)
    return adapter.eval()


def generation(turns: Turns, told: dict[str, Any]) -> None:
    """Pictures by `infusion.generate`, with no concept, some in one prompt, or one in each of some prompts."""
    base = _base(told)
    names = [f"{NAME}-{number}" for number in range(told["concepts"])]
    adapters = [_any_adapter(base, told, name) for name in names]
    subjects = [f"a <{name}>" for name in names] or [f"a {CLASS_NOUN}"]
    prompts = subjects if "prompts" in told else [" and ".join(subjects)]
    seeds = range(told["batch_size"] // len(prompts))
    while True:
        generate(
            base,
            [f"{prompt} on the beach" for prompt in prompts],
            adapters,
            seeds,
            num_inference_steps=told["sampler_steps"],
            guidance_scale=told["guidance_scale"],
            batch_size=told["batch_size"],
            lock_until=told.get("lock_until", 1.0),
        )
        turns.done()


def pipeline(turns: Turns, told: dict[str, Any]) -> None:
    """Pictures by the diffusers pipeline: as it is, or customized and with a concept."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(told["model_dir"], dtype=_DTYPES[told["dtype"]]).to(told["device"])
    prompt = f"a {CLASS_NOUN} on the beach"
    if told["concepts"]:
        base = Base.from_pipeline(pipe)
        path = Path(told["work"]) / "any.safetensors"
        save_adapter(_any_adapter(base, told), path, base)
        pipe = customize(pipe)
        pipe.load_infusion(str(path))
        prompt = f"a <{NAME}> on the beach"
    pipe.set_progress_bar_config(disable=True)
    while True:
        pipe(
            prompt,
            num_images_per_prompt=told["batch_size"],
            num_inference_steps=told["sampler_steps"],
            guidance_scale=told["guidance_scale"],
            generator=[torch.Generator().manual_seed(seed) for seed in range(told["batch_size"])],
        )
        turns.done()


def concepts(turns: Turns, told: dict[str, Any]) -> None:
    """Each step loads one more adapter file, and keeps it."""
    base = _base(told)
    path = Path(told["work"]) / "one-of-many.safetensors"
    turns.about["file_bytes"] = save_adapter(_any_adapter(base, told), path, base)
    kept: list[Adapter] = []
    while True:
        kept.append(load_adapter(path, base))
        turns.about["num_parameters"] = kept[0].num_parameters
        turns.done()


WORKERS: dict[str, Work] = {
    work.__name__: work for work in (forward, infusion, diffusers_script, generation, pipeline, concepts)
}

if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    WORKERS[told["worker"]](Turns(told["device"]), told)
