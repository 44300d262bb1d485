"""The toybox world -> its text-to-image foundation model, in the folder layout of Stable Diffusion.

Stages, in order; each keeps its results in the work folder and goes on where it was interrupted:

    data        render pictures                     -> pictures-64/*.safetensors
    vae         train the autoencoder               -> vae-64/
    tokenizer   learn byte-pair merges of captions  -> tokenizer/
    denoiser    train UNet and text encoder jointly -> denoiser-64.pt
    export      write the averaged model in float16 -> a folder for StableDiffusionPipeline.from_pretrained
    look        draw a sheet of samples of an exported model
    adopt       start a work folder from an exported model, to train it further

The same script trains on CPU and GPU. Run `python tools/pretrain_toybox.py STAGE --help` for the options.
"""

import argparse
import copy
import hashlib
import json
import math
import platform
import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from infusion.files import whole_file
from infusion.toybox.captions import PLACES, caption
from infusion.toybox.render import render
from infusion.toybox.scene import CLASSES, COLORS, Scene, sample_scene

SHARD = 1000  # pictures in one file; picture i of shard s has scene seed s * SHARD + i
HELD_OUT = 900_000  # first scene seed that training never sees
NUM_HELD_OUT = 256
NUM_CAPTIONS = 20_000  # captions the tokenizer learns its merges from
VOCABULARY = 1000
MAX_TOKENS = 32
TEXT_WIDTH = 160
SCALING_FACTOR = 0.18215  # Stable Diffusion's own, so that nothing can rely on it being 1
UNET_WIDTHS = {64: (64, 128, 192), 128: (128, 256, 384)}  # by picture side in pixels
BATCH_SIZE = {"cpu": 16, "cuda": 256}
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
TOY_WEIGHT = 4.0
WARM_UP_STEPS = 300
SECONDS_BETWEEN = {"log": 20, "checkpoint": 180, "held out": 300}

# ---------------------------------------------------------------------------------------------------- data


def picture_folder(args: argparse.Namespace) -> Path:
    return args.workdir / f"pictures-{args.size_px}"


def shards(args: argparse.Namespace) -> list[Path]:
    found = sorted(picture_folder(args).glob("[0-9]*.safetensors"))
    if not found:
        raise SystemExit(f"error: no pictures in {picture_folder(args)}. Run the stage `data` first.")
    return found


def render_shard(path: Path, first_seed: int, count: int, size_px: int, device: str) -> None:
    """Writes uint8 pictures [count, 3, S, S] of consecutive scene seeds."""
    batch = 16 if device == "cpu" else 250
    if device == "cpu":
        torch.set_num_threads(1)
    seeds = range(first_seed, first_seed + count)
    batches = [seeds[i : i + batch] for i in range(0, count, batch)]
    images = [render([sample_scene(s) for s in some], size_px, device).images for some in batches]
    pictures = torch.cat([(image * 255).round().to(torch.uint8).cpu() for image in images])
    with whole_file(path) as file:
        save_file({"images": pictures}, file)


def data(args: argparse.Namespace) -> None:
    folder = picture_folder(args)
    numbers = range(math.ceil(args.count / SHARD))
    jobs = [(folder / "held_out.safetensors", HELD_OUT, NUM_HELD_OUT)]
    jobs += [(folder / f"{number:05d}.safetensors", number * SHARD, SHARD) for number in numbers]
    jobs = [job for job in jobs if not job[0].exists()]
    started = time.time()
    with ProcessPoolExecutor(args.workers) as workers:
        pending = [workers.submit(render_shard, *job, args.size_px, args.device) for job in jobs]
        for done, job in enumerate(pending, start=1):
            job.result()
            left = (time.time() - started) / done * (len(jobs) - done)
            print(f"shard {done}/{len(jobs)}, {left / 60:.1f} min left", flush=True)


# ------------------------------------------------------------------------------------------ what stages share


class Interruption:
    """Notes Ctrl-C and SIGTERM, so that a loop can save its state before it ends."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, *_: Any) -> None:
        self.asked = True


class Timer:
    """Rings every so many seconds."""

    def __init__(self, what: str) -> None:
        self.every = SECONDS_BETWEEN[what]
        self.last = time.time()

    def rings(self) -> float:
        """The seconds since it last rang, or 0 if it is not yet time."""
        passed = time.time() - self.last
        if passed < self.every:
            return 0.0
        self.last = time.time()
        return passed


def save_state(path: Path, state: dict[str, Any]) -> None:
    with whole_file(path) as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any] | None:
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """The folder is the old one until the new one is complete."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def machine(device: str) -> str:
    """For the model card."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}; Python {platform.python_version()}"


# ----------------------------------------------------------------------------------------------------- vae


def vae_folder(args: argparse.Namespace) -> Path:
    return args.workdir / f"vae-{args.size_px}"


def new_vae(size_px: int) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=size_px,
        latent_channels=4,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
        scaling_factor=SCALING_FACTOR,
    )


def to_signed(pictures: Tensor, device: str) -> Tensor:
    """uint8 -> float in [-1, 1]."""
    return (pictures.to(device).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def autoencoder_loss(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    latents = vae.encode(pictures).latent_dist
    error = vae.decode(latents.sample()).sample - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (latents.mean**2 + latents.var - 1 - latents.logvar).mean()
    return error.abs().mean() + 4 * error.square().mean() + 0.5 * edges + 1e-5 * divergence


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean over uint8 pictures [N, 3, S, S], in dB."""
    values = []
    for some in pictures.split(32):
        target = to_signed(some, vae.device.type)
        decoded = vae.decode(vae.encode(target).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(-10 * ((decoded - target) / 2).square().mean(dim=(1, 2, 3)).log10())
    return torch.cat(values).mean().item()


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Folds into the 1x1 convolutions around the latents that each scaled channel has mean 0, variance 1."""
    means = [vae.encode(to_signed(some, vae.device.type)).latent_dist.mean for some in pictures.split(32)]
    latents = torch.cat(means)
    shift = latents.mean(dim=(0, 2, 3))
    gain = 1 / (SCALING_FACTOR * latents.std(dim=(0, 2, 3)))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] *= gain[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - shift) * gain
    into.bias[4:] += 2 * gain.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ shift
    out_of.weight /= gain[None, :, None, None]


def train_vae(args: argparse.Namespace) -> None:
    """First on crops of 32 pixels, for many cheap steps; in the last fifth of the time on whole pictures.

    With `--decoder-only` the decoder of a finished autoencoder is trained further: its latents, and so the
    training of the denoiser, stay as they are.
    """
    held_out = load_file(picture_folder(args) / "held_out.safetensors")["images"]
    vae = AutoencoderKL.from_pretrained(vae_folder(args)) if args.decoder_only else new_vae(args.size_px)
    vae.to(args.device, memory_format=torch.channels_last)
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=1e-4, fused=True)
    checkpoint = args.workdir / f"{'decoder' if args.decoder_only else 'vae'}-{args.size_px}.pt"
    record: dict[str, Any] = {"steps": 0, "seconds": 0.0, "pictures": 0, "machine": machine(args.device)}
    record["parameters"] = sum(parameter.numel() for parameter in vae.parameters())
    if state := load_state(checkpoint):
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        record |= state["record"]

    def save() -> None:
        states = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
        save_state(checkpoint, {**states, "record": record})

    interruption, log, keep = Interruption(), Timer("log"), Timer("checkpoint")
    pictures, losses = torch.empty(0), []
    while record["seconds"] < 60 * args.minutes and not interruption.asked:
        started = time.time()
        if record["steps"] % 500 == 0 or not len(pictures):
            pictures = torch.cat([load_file(shard)["images"] for shard in shards(args)])
            record["pictures"] = len(pictures)
        progress = record["seconds"] / (60 * args.minutes)
        for group in optimizer.param_groups:
            warm_up = min(1, (record["steps"] + 1) / 100)
            group["lr"] = args.learning_rate * warm_up * (0.5 + 0.5 * math.cos(math.pi * progress))
        generator = torch.Generator().manual_seed(record["steps"])
        side = 32 if progress < 0.8 else args.size_px
        top, left = torch.randint(args.size_px - side + 1, (2,), generator=generator).tolist()
        chosen = pictures[torch.randint(len(pictures), (16,), generator=generator)]
        batch = to_signed(chosen[:, :, top : top + side, left : left + side], args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            loss = autoencoder_loss(vae, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        record["steps"] += 1
        record["seconds"] += time.time() - started
        if log.rings():
            left_min = args.minutes - record["seconds"] / 60
            found = f"loss {sum(losses) / len(losses):.4f}, PSNR {psnr(vae, held_out[:64]):.2f} dB"
            print(f"step {record['steps']}, {side} px, {found}, {left_min:.1f} min left", flush=True)
            losses.clear()
        if keep.rings():
            save()
    save()
    if interruption.asked:
        raise SystemExit(f"stopped; the same command goes on from {checkpoint}")
    if args.decoder_only:
        before = read_record(vae_folder(args))
        record |= {name: before[name] + record[name] for name in ("steps", "seconds")}
    else:
        standardise_latents(vae, pictures[:1000])
    record["psnr_db"] = round(psnr(vae, held_out), 2)
    print(f"held-out PSNR {record['psnr_db']} dB after {record['steps']} steps", flush=True)

    def write(folder: Path) -> None:
        vae.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        (folder / "record.json").write_text(json.dumps(record, indent=1))

    save_folder(vae_folder(args), write)
    if args.decoder_only:
        checkpoint.unlink()  # it is in the folder now; a further call trains it further still


# ----------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer(args: argparse.Namespace) -> None:
    """Byte-pair merges over CLIP's own word splitting. Every byte is a token, so every prompt encodes."""
    captions = [caption(sample_scene(seed), random.Random(seed)) for seed in range(NUM_CAPTIONS)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|startoftext|>", "<|endoftext|>"]
    learner = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(alphabet),  # each byte comes twice: within and at the end of a word
        min_frequency=100,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    last_bytes, merged = [byte + "</w>" for byte in alphabet], dict.fromkeys(a + b for a, b in merges)
    vocabulary = {text: number for number, text in enumerate([*alphabet, *last_bytes, *merged, *special])}

    def write(folder: Path) -> None:
        made = CLIPTokenizer(vocabulary, merges, model_max_length=MAX_TOKENS)
        made.save_pretrained(folder)  # tokenizer.json; the two files below are the older, common form
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    save_folder(args.workdir / "tokenizer", write)
    tokenizer = CLIPTokenizer.from_pretrained(args.workdir / "tokenizer")
    lengths = [len(ids) for ids in tokenizer(captions).input_ids]
    print(f"{len(tokenizer)} tokens; captions are {max(lengths)} tokens long at most", flush=True)
    print(*(" ".join(tokenizer.tokenize(text)) for text in captions[:3]), sep="\n", flush=True)


# ------------------------------------------------------------------------------------------------ denoiser


def new_denoiser(size_px: int, tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    coarsest = "" if size_px == 64 else "CrossAttn"  # 4x4 latents are too few for attention to pay
    unet = UNet2DConditionModel(
        sample_size=size_px // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=UNET_WIDTHS[size_px],
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", f"{coarsest}DownBlock2D"),
        up_block_types=(f"{coarsest}UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # the number of heads, in spite of its name
        norm_num_groups=16,
    )
    for name, part in unet.named_modules():  # every residual branch, and the answer, starts as nothing
        if name.endswith(("conv2", "proj_out", "conv_out")):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    return nn.ModuleDict({"text_encoder": text_encoder, "unet": unet.to(memory_format=torch.channels_last)})


def noise_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def encoder_fingerprint(vae: AutoencoderKL) -> str:
    found = hashlib.sha256()
    for part in (vae.encoder, vae.quant_conv):
        for weight in part.state_dict().values():
            found.update(weight.contiguous().numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def encode_shards(args: argparse.Namespace, paths: list[Path]) -> Tensor:
    """Scaled latents [pictures, 2, 4, S/4, S/4], half precision: as drawn, mirrored. Encodes once."""
    vae = AutoencoderKL.from_pretrained(vae_folder(args))
    mark = encoder_fingerprint(vae)
    vae.to(args.device, memory_format=torch.channels_last)
    found = []
    for path in paths:
        kept = args.workdir / f"latents-{args.size_px}" / path.name
        if kept.exists():
            with safe_open(kept, "pt") as file:
                if (file.metadata() or {}).get("vae") == mark:
                    found.append(file.get_tensor("latents"))
                    continue
        halves = []
        for some in load_file(path)["images"].split(50):
            both = to_signed(torch.cat([some, some.flip(-1)]), args.device)
            latents = vae.encode(both).latent_dist.mean * vae.config.scaling_factor
            halves.append(torch.stack(latents.chunk(2), dim=1).half().cpu().contiguous())
        found.append(torch.cat(halves))
        with whole_file(kept) as file:
            save_file({"latents": found[-1]}, file, {"vae": mark})
        print(f"encoded {len(found)}/{len(paths)} files", flush=True)
    return torch.cat(found)


@cache
def scene_of(seed: int) -> Scene:
    return sample_scene(seed)


def toy_masks(args: argparse.Namespace, paths: list[Path]) -> Tensor:
    """Share of every latent that toys cover, [pictures, 2, 1, S/4, S/4], half precision: as drawn, mirrored."""
    found = []
    for path in paths:
        kept = args.workdir / f"masks-{args.size_px}" / path.name
        if not kept.exists():
            seeds = [int(path.stem) * SHARD + i for i in range(SHARD)]
            drawn = [
                render([scene_of(seed) for seed in seeds[i : i + 50]], args.size_px // 4) for i in range(0, SHARD, 50)
            ]
            cover = torch.cat([batch.masks.sum(1, keepdim=True) for batch in drawn])
            with whole_file(kept) as file:
                save_file({"masks": torch.stack([cover, cover.flip(-1)], dim=1).half()}, file)
        found.append(load_file(kept)["masks"])
    return torch.cat(found)


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """As Stable Diffusion's pipelines do: always the full length."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids


def denoising_loss(
    model: nn.ModuleDict,
    scheduler: DDIMScheduler,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    ids: Tensor,
    masks: Tensor | None = None,
) -> Tensor:
    """Error of the predicted velocity. With masks, toys count `TOY_WEIGHT` times as much as what is behind them: per
    pixel the best prediction stays the same, but the toys are the hard part."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    states = model["text_encoder"](ids).last_hidden_state
    error = (model["unet"](noisy, timesteps, states).sample.float() - target).square()
    if masks is None:
        return error.mean()
    weight = 1 + (TOY_WEIGHT - 1) * masks
    return (error * weight).mean() / weight.mean()


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Half of them anywhere, half of them rather in the middle, where the picture is decided."""
    anywhere = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    middle = torch.randn(count, generator=generator).sigmoid()
    share = torch.where(torch.rand(count, generator=generator) < 0.5, anywhere, middle)
    return (share * 1000).long().clamp(max=999)


class Batches:
    """Step -> batch, always the same for the same step: a resumed run goes on as if it had not stopped."""

    def __init__(self, args: argparse.Namespace, tokenizer: CLIPTokenizer):
        self.paths = shards(args)
        self.latents = encode_shards(args, self.paths)
        self.masks = toy_masks(args, self.paths)
        self.seeds = [int(path.stem) * SHARD + i for path in self.paths for i in range(SHARD)]
        few = [i for i, seed in enumerate(self.seeds) if len(scene_of(seed).toys) <= args.max_toys]
        self.usable = torch.tensor(few)
        self.tokenizer, self.device = tokenizer, args.device
        self.batch_size = args.batch_size or BATCH_SIZE[args.device]

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """latents, noise, timesteps, token ids, masks."""
        rng, generator = random.Random(step), torch.Generator().manual_seed(step)
        chosen = self.usable[torch.randint(len(self.usable), (self.batch_size,), generator=generator)]
        mirrored = torch.randint(2, (self.batch_size,), generator=generator)
        latents = self.latents[chosen, mirrored].float()
        captions = [
            "" if rng.random() < CAPTION_DROPOUT else caption(scene_of(self.seeds[i]), rng, mirrored=bool(m))
            for i, m in zip(chosen.tolist(), mirrored.tolist(), strict=True)
        ]
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = draw_timesteps(self.batch_size, generator)
        ids, masks = tokens(self.tokenizer, captions), self.masks[chosen, mirrored].float()
        return tuple(x.to(self.device) for x in (latents, noise, timesteps, ids, masks))


class HeldOut:
    """The loss on pictures of held-out scenes, with fixed captions, noise and (even) timesteps."""

    def __init__(self, args: argparse.Namespace, tokenizer: CLIPTokenizer):
        self.latents = encode_shards(args, [picture_folder(args) / "held_out.safetensors"])[:, 0].float()
        captions = [caption(sample_scene(HELD_OUT + i), random.Random(i)) for i in range(len(self.latents))]
        self.ids = tokens(tokenizer, captions)
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(self.latents.shape, generator=generator)
        self.timesteps = torch.linspace(0, 999, len(self.latents)).long()
        self.device = args.device

    @torch.no_grad()
    def loss(self, model: nn.ModuleDict, scheduler: DDIMScheduler) -> float:
        everything = [x.to(self.device) for x in (self.latents, self.noise, self.timesteps, self.ids)]
        parts = zip(*(x.split(32) for x in everything), strict=True)
        losses = [denoising_loss(model, scheduler, *part).item() for part in parts]
        return sum(losses) / len(losses)


def learning_rate(args: argparse.Namespace, step: int, seconds: float) -> float:
    """Warm-up, constant, and a linear fall to zero in the last minutes."""
    left = max(0.0, 60 * args.minutes - seconds)
    return args.learning_rate * min(1.0, (step + 1) / WARM_UP_STEPS, left / (60 * args.cooldown_minutes))


def load_tokenizer(args: argparse.Namespace) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(args.workdir / "tokenizer")


def checkpoint_path(args: argparse.Namespace) -> Path:
    return args.workdir / f"denoiser-{args.size_px}.pt"


def train_denoiser(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    tokenizer, scheduler = load_tokenizer(args), noise_scheduler()
    batches, held_out = Batches(args, tokenizer), HeldOut(args, tokenizer)
    model = new_denoiser(args.size_px, tokenizer).to(args.device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    record: dict[str, Any] = {"steps": 0, "images": 0, "seconds": 0.0, "held_out": []}
    if state := load_state(checkpoint_path(args)):
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        if state["optimizer"]:
            optimizer.load_state_dict(state["optimizer"])
        record = state["record"]
    record |= {
        "machine": machine(args.device),
        "pictures": len(batches.usable),
        "max_toys": args.max_toys,
        "batch_size": batches.batch_size,
        "learning_rate": args.learning_rate,
        "cooldown_minutes": args.cooldown_minutes,
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in model.items()},
    }
    print(json.dumps({name: value for name, value in record.items() if name != "held_out"}), flush=True)

    def test_and_note() -> None:
        found = held_out.loss(average, scheduler)
        record["held_out"].append([record["images"], round(found, 4)])
        print(f"held-out loss {found:.4f} after {record['images']} images", flush=True)

    def save() -> None:
        weights = {"model": model.state_dict(), "average": average.state_dict()}
        optimizer_state = optimizer.state_dict()
        save_state(checkpoint_path(args), {**weights, "optimizer": optimizer_state, "record": record})

    interruption, log, keep, test = Interruption(), Timer("log"), Timer("checkpoint"), Timer("held out")
    losses: list[float] = []
    while record["seconds"] < 60 * args.minutes and not interruption.asked:
        started = time.time()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, record["steps"], record["seconds"])
        batch = batches.batch(record["steps"])
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            loss = denoising_loss(model, scheduler, *batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step = record["steps"] = record["steps"] + 1
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        record["images"] += batches.batch_size
        if test.rings():
            test_and_note()
        record["seconds"] += time.time() - started
        if passed := log.rings():
            rate = len(losses) * batches.batch_size / passed
            found = f"{record['images']} images, {rate:.1f}/s, loss {sum(losses) / len(losses):.4f}"
            print(f"step {step}, {found}, {args.minutes - record['seconds'] / 60:.1f} min left", flush=True)
            losses.clear()
        if keep.rings():
            save()
    test_and_note()
    save()


# ------------------------------------------------------------------------------------ export, look and adopt


def export(args: argparse.Namespace) -> None:
    state = load_state(checkpoint_path(args))
    if state is None:
        raise SystemExit(f"error: no {checkpoint_path(args)}. Run the stage `denoiser` first.")
    tokenizer = load_tokenizer(args)
    model = new_denoiser(args.size_px, tokenizer)
    model.load_state_dict(state["average"])
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae_folder(args)),
        text_encoder=model["text_encoder"],
        tokenizer=tokenizer,
        unet=model["unet"].to(memory_format=torch.contiguous_format),
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16)

    record = {"vae": read_record(vae_folder(args)), "denoiser": state["record"]}

    def write(folder: Path) -> None:
        pipeline.save_pretrained(folder)
        shutil.copytree(args.workdir / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
        config = folder / "text_encoder" / "config.json"  # names the dtype to compute in
        config.write_text(config.read_text().replace('"float16"', '"float32"'))
        (folder / "record.json").write_text(json.dumps(record, indent=1))
        (folder / "README.md").write_text(model_card(args.size_px, **record), encoding="utf-8")

    save_folder(args.out, write)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB, {state['record']['images']} images seen")


def model_card(size_px: int, vae: dict[str, Any], denoiser: dict[str, Any]) -> str:
    """Every figure comes from the record of the training."""
    curve = "\n".join(f"| {images} | {loss:.4f} |" for images, loss in denoiser["held_out"])
    parameters = denoiser["parameters"]
    return f"""# The toybox foundation model

A small latent text-to-image model of the world of `infusion.toybox`, in the layout of Stable Diffusion:
`StableDiffusionPipeline.from_pretrained(this_folder)` loads it. Pictures of {size_px} x {size_px} pixels,
prompts of up to {MAX_TOKENS} tokens, v-prediction. It knows the toys, colours and places of that world and
nothing else. Made by `tools/pretrain_toybox.py`, which can also train it further (stage `adopt`).

**Data.** {denoiser["pictures"]} rendered scenes (seeds from 0 on; those from {HELD_OUT} on are
held out), each also mirrored; captions drawn anew from the scene at every presentation. In the loss, what
shows toys counts {TOY_WEIGHT:.0f} times as much as what is behind them. The last stretch of the training saw
scenes of at most {denoiser["max_toys"]} toy(s).

| | autoencoder | UNet and text encoder |
|---|---|---|
| parameters | {vae["parameters"]} | {parameters["unet"]} and {parameters["text_encoder"]} |
| steps | {vae["steps"]} | {denoiser["steps"]} |
| images seen | | {denoiser["images"]} |
| minutes | {vae["seconds"] / 60:.0f} | {denoiser["seconds"] / 60:.0f} |
| machine | {vae["machine"]} | {denoiser["machine"]} |

Reconstruction of held-out pictures by the autoencoder: {vae["psnr_db"]} dB PSNR.

| images seen | held-out denoising loss |
|---|---|
{curve}
"""


def sheet_prompts(args: argparse.Namespace) -> list[str]:
    colors, places = list(COLORS), [PLACES[name][0] for name in list(PLACES)[: args.places]]
    prompts = []
    for row, noun in enumerate(list(CLASSES)[: args.classes]):
        for column, place in enumerate(places):
            color = colors[(row + 3 * column) % len(colors)]
            prompts.append(f"{'an' if color[0] in 'aeiou' else 'a'} {color} {noun} {place}")
    nouns = list(CLASSES)
    for column, place in enumerate(places):
        prompts.append(f"a red {nouns[column]} left of a blue {nouns[-1 - column]} {place}")
    return prompts


def look(args: argparse.Namespace) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(args.model).to(args.device)
    pipeline.set_progress_bar_config(disable=True)
    prompts = sheet_prompts(args)
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), 20):
        some = prompts[start : start + 20]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        options = {"num_inference_steps": 25, "guidance_scale": args.guidance_scale, "generator": seeds}
        pictures += pipeline(some, **options).images
    side = 2 * pictures[0].width
    sheet = Image.new("RGB", (side * args.places, side * (len(prompts) // args.places)))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, args.places)
        sheet.paste(picture.resize((side, side)), (side * column, side * row))
    with whole_file(args.out) as file:
        sheet.save(file, "PNG")
    for start in range(0, len(prompts), args.places):
        print(" | ".join(prompts[start : start + args.places]))


def adopt(args: argparse.Namespace) -> None:
    if checkpoint_path(args).exists():
        raise SystemExit(f"error: {checkpoint_path(args)} exists. Choose another --workdir.")
    pipeline = StableDiffusionPipeline.from_pretrained(args.model)
    record = read_record(args.model)

    def write_vae(folder: Path) -> None:
        pipeline.vae.save_pretrained(folder)
        (folder / "record.json").write_text(json.dumps(record["vae"], indent=1))

    save_folder(vae_folder(args), write_vae)
    save_folder(args.workdir / "tokenizer", pipeline.tokenizer.save_pretrained)
    weights = nn.ModuleDict({"text_encoder": pipeline.text_encoder, "unet": pipeline.unet}).state_dict()
    state = {"model": weights, "average": weights, "optimizer": None, "record": record["denoiser"]}
    save_state(checkpoint_path(args), state)


# -------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--workdir", type=Path, default=Path("toybox_run"), help="keeps all results")
    common.add_argument("--size-px", type=int, choices=sorted(UNET_WIDTHS), default=64, help="picture side")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    common.add_argument("--device", choices=sorted(BATCH_SIZE), default=device)
    common.add_argument("--threads", type=int, help="CPU threads of this process")
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = whole.add_subparsers(required=True, metavar="STAGE")

    def stage(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        one = stages.add_parser(name, parents=[common], help=text, description=text)
        one.set_defaults(run=run)
        return one

    one = stage("data", data, "render pictures of training scenes, and the held-out ones")
    one.add_argument("--count", type=int, default=40_000, help="training pictures in all")
    one.add_argument("--workers", type=int, default=1, help="processes")
    one = stage("vae", train_vae, "train the autoencoder on the pictures there are")
    one.add_argument("--minutes", type=float, default=12, help="training time in all, earlier runs included")
    one.add_argument("--learning-rate", type=float, default=2e-3)
    one.add_argument("--decoder-only", action="store_true", help="keep the latents as they are")
    stage("tokenizer", train_tokenizer, "learn the vocabulary of the captions")
    one = stage("denoiser", train_denoiser, "train UNet and text encoder on the pictures there are")
    one.add_argument("--minutes", type=float, default=85, help="training time in all, earlier runs included")
    one.add_argument("--cooldown-minutes", type=float, default=20, help="the learning rate falls at the end")
    one.add_argument("--learning-rate", type=float, default=8e-4)
    one.add_argument("--batch-size", type=int, help=f"default: {BATCH_SIZE}")
    one.add_argument("--max-toys", type=int, default=2, help="1: only scenes of a single toy, which are easier")
    one = stage("export", export, "write the averaged weights of the latest checkpoint as a model folder")
    one.add_argument("--out", type=Path, required=True)
    one = stage("look", look, "draw samples of an exported model: classes down, places across")
    one.add_argument("--model", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True, help="PNG file")
    one.add_argument("--classes", type=int, default=len(CLASSES))
    one.add_argument("--places", type=int, default=len(PLACES))
    one.add_argument("--guidance-scale", type=float, default=4.0)
    one = stage("adopt", adopt, "start a work folder from an exported model, to train it further")
    one.add_argument("--model", type=Path, required=True)
    return whole


def main() -> None:
    args = parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
