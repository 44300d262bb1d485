"""The toybox world -> its text-to-image foundation model, in the folder layout of Stable Diffusion.

Stages, in order; each keeps its results in the work folder and goes on where it was interrupted:

    data        render images                     -> images-64/*.safetensors
    vae         train the autoencoder               -> vae-64/
    tokenizer   learn byte-pair merges of captions  -> tokenizer/
    denoiser    train UNet and text encoder jointly -> denoiser-64.pt
    export      write the averaged model in float16 -> a folder for StableDiffusionPipeline.from_pretrained
    all         the stages above, one after the other
    look        draw a sheet of samples of an exported model

The same script trains on CPU and GPU. Run `python tools/pretrain_toybox.py STAGE --help` for the options. With
`--start-from MODEL` a stage takes over every weight of an exported model that still fits.
"""

import argparse
import copy
import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from resumable import Interruption, Timer, load_state, machine, save_folder, save_state
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from infusion.base.cross_attention import AttentionRecorder
from infusion.files import whole_file
from infusion.foundation.card import model_card
from infusion.toybox.captions import PLACES, article, caption, mentions
from infusion.toybox.render import render
from infusion.toybox.scene import CLASSES, COLORS, HELD_OUT_SCENES, TRAINING_SCENES, Scene, sample_scene

SHARD = 1000  # images in one file; image i of shard s has scene seed s * SHARD + i
NUM_HELD_OUT = 256
NUM_CAPTIONS = 20_000  # captions the tokenizer learns its merges from
VOCABULARY = 1000
MAX_TOKENS = 32
TEXT_WIDTH = 160
LATENT_CHANNELS = 8  # with four, as in Stable Diffusion 1, small images lose eyes and stripes
SCALING_FACTOR = 0.18215  # Stable Diffusion's own, so that nothing can rely on it being 1
UNET_WIDTHS = {64: (64, 128, 192), 128: (128, 256, 384)}  # by image side in pixels
BATCH_SIZE = {"cpu": 16, "cuda": 256}
VAE_LEARNING_RATE = 2e-3
VAE_BATCH_SIZE = {"cpu": 16, "cuda": 64}
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
TOY_WEIGHT = 4.0
ATTENTION_WEIGHT = 0.05
WARM_UP_STEPS = 300
SECONDS_BETWEEN = {"log": 20, "checkpoint": 180, "held out": 300}

# ---------------------------------------------------------------------------------------------------- data


def picture_folder(args: argparse.Namespace) -> Path:
    return args.workdir / f"pictures-{args.size_px}"


def shards(args: argparse.Namespace) -> list[Path]:
    found = sorted(picture_folder(args).glob("[0-9]*.safetensors"))
    if not found:
        raise SystemExit(f"error: no images in {picture_folder(args)}. Run the stage `data` first.")
    return found


@cache
def world() -> str:
    """Tells one version of the world from another, so that images and captions are of the same."""
    return hashlib.sha256(repr([sample_scene(seed) for seed in range(50)]).encode()).hexdigest()


def read_shard(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("world") != world():
            raise SystemExit(f"error: {path} was drawn from another version of the world. Choose another --workdir.")
        return {name: file.get_tensor(name) for name in ("images", "masks")}


def render_shard(path: Path, first_seed: int, count: int, size_px: int, device: str) -> None:
    """Writes uint8 images [count, 3, S, S] of consecutive scene seeds, and each toy's share of every latent."""
    batch = 16 if device == "cpu" else 250
    if device == "cpu":
        torch.set_num_threads(1)
    seeds = range(first_seed, first_seed + count)
    batches = [seeds[i : i + batch] for i in range(0, count, batch)]
    drawn = [render([sample_scene(seed) for seed in some], size_px, device) for some in batches]
    images = torch.cat([(one.images * 255).round().to(torch.uint8).cpu() for one in drawn])
    masks = torch.cat([(F.avg_pool2d(one.masks, 4) * 255).round().to(torch.uint8).cpu() for one in drawn])
    with whole_file(path) as file:
        save_file({"images": images, "masks": masks}, file, {"world": world()})


def data(args: argparse.Namespace) -> None:
    if args.count > len(TRAINING_SCENES):
        raise SystemExit(f"error: --count {args.count}: scenes from {len(TRAINING_SCENES)} on are not for training.")
    folder = picture_folder(args)
    numbers = range(math.ceil(args.count / SHARD))
    jobs = [(folder / "held_out.safetensors", HELD_OUT_SCENES.start, NUM_HELD_OUT)]
    jobs += [(folder / f"{number:05d}.safetensors", number * SHARD, SHARD) for number in numbers]
    jobs = [job for job in jobs if not job[0].exists()]
    started = time.time()

    def told(done: int) -> None:
        left = (time.time() - started) / done * (len(jobs) - done)
        print(f"shard {done}/{len(jobs)}, {left / 60:.1f} min left", flush=True)

    if args.device == "cpu" or args.workers > 1:
        with ProcessPoolExecutor(args.workers) as workers:
            pending = [workers.submit(render_shard, *job, args.size_px, "cpu") for job in jobs]
            for done, one in enumerate(pending, start=1):
                one.result()
                told(done)
    else:  # a GPU belongs to this process
        for done, job in enumerate(jobs, start=1):
            render_shard(*job, args.size_px, args.device)
            told(done)


# ------------------------------------------------------------------------------------------ what stages share


def read_record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def take_over(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads the weights that still fit; the others stay as they are."""
    own = module.state_dict()
    fitting = {name: weight for name, weight in weights.items() if name in own and own[name].shape == weight.shape}
    module.load_state_dict(fitting, strict=False)
    print(f"{len(fitting)} of {len(own)} tensors taken over", flush=True)


# ----------------------------------------------------------------------------------------------------- vae


def vae_folder(args: argparse.Namespace) -> Path:
    return args.workdir / f"vae-{args.size_px}"


def new_vae(size_px: int) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=size_px,
        latent_channels=LATENT_CHANNELS,
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


def autoencoder_loss(vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator) -> Tensor:
    latents = vae.encode(pictures).latent_dist
    error = vae.decode(latents.sample(generator)).sample - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (latents.mean**2 + latents.var - 1 - latents.logvar).mean()
    return error.abs().mean() + 4 * error.square().mean() + 0.5 * edges + 1e-5 * divergence


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean over uint8 images [N, 3, S, S], in dB."""
    values = []
    for some in pictures.split(32):
        target = to_signed(some, vae.device.type)
        decoded = vae.decode(vae.encode(target).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(-10 * ((decoded - target) / 2).square().mean(dim=(1, 2, 3)).log10())
    return torch.cat(values).mean().item()


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Folds into the 1x1 convolutions around the latents that each scaled channel has mean 0, variance 1."""
    encoded = [vae.encode(to_signed(some, vae.device.type)).latent_dist.mean for some in pictures.split(32)]
    latents = torch.cat(encoded)
    shift = latents.mean(dim=(0, 2, 3))
    gain = 1 / (SCALING_FACTOR * latents.std(dim=(0, 2, 3)))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    means, log_variances = slice(None, LATENT_CHANNELS), slice(LATENT_CHANNELS, None)
    into.weight[means] *= gain[:, None, None, None]
    into.bias[means] = (into.bias[means] - shift) * gain
    into.bias[log_variances] += 2 * gain.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ shift
    out_of.weight /= gain[None, :, None, None]


def train_vae(args: argparse.Namespace) -> None:
    """First on crops of 32 pixels, for many cheap steps; in the last fifth of the time on whole images."""
    if vae_folder(args).exists() and read_record(vae_folder(args))["seconds"] >= 60 * args.minutes:
        return
    held_out = read_shard(picture_folder(args) / "held_out.safetensors")["images"]
    vae = new_vae(args.size_px).to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_LEARNING_RATE, weight_decay=1e-4, fused=True)
    checkpoint = args.workdir / f"vae-{args.size_px}.pt"
    record: dict[str, Any] = {"steps": 0, "seconds": 0.0, "pictures": 0, "machine": machine(args.device)}
    record["parameters"] = sum(parameter.numel() for parameter in vae.parameters())
    if state := load_state(checkpoint):
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        record |= state["record"]
    elif args.start_from:
        take_over(vae, AutoencoderKL.from_pretrained(args.start_from, subfolder="vae").float().state_dict())
        record["started_from"] = read_record(args.start_from)["vae"]

    def save() -> None:
        states = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
        save_state(checkpoint, {**states, "record": record})

    pictures = torch.cat([read_shard(shard)["images"] for shard in shards(args)])
    record["pictures"] = len(pictures)
    log, keep, losses = Timer(SECONDS_BETWEEN["log"]), Timer(SECONDS_BETWEEN["checkpoint"]), []
    with Interruption() as interruption:
        while record["seconds"] < 60 * args.minutes and not interruption.asked:
            started = time.time()
            progress = record["seconds"] / (60 * args.minutes)
            for group in optimizer.param_groups:
                warm_up = min(1, (record["steps"] + 1) / 100)
                group["lr"] = VAE_LEARNING_RATE * warm_up * (0.5 + 0.5 * math.cos(math.pi * progress))
            generator = torch.Generator().manual_seed(record["steps"])
            side = 32 if progress < 0.8 else args.size_px
            top, left = torch.randint(args.size_px - side + 1, (2,), generator=generator).tolist()
            chosen = pictures[torch.randint(len(pictures), (VAE_BATCH_SIZE[args.device],), generator=generator)]
            batch = to_signed(chosen[:, :, top : top + side, left : left + side], args.device)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
                loss = autoencoder_loss(vae, batch, generator)
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
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
    standardise_latents(vae, pictures[:SHARD])
    record["psnr_db"] = round(psnr(vae, held_out), 2)
    print(f"held-out PSNR {record['psnr_db']} dB after {record['steps']} steps", flush=True)

    def write(folder: Path) -> None:
        vae.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        (folder / "record.json").write_text(json.dumps(record, indent=1))

    save_folder(vae_folder(args), write)


# ----------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer(args: argparse.Namespace) -> None:
    """Byte-pair merges over CLIP's own word splitting. Every byte is a token, so every prompt encodes."""
    if (args.workdir / "tokenizer").exists():
        return
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
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
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
    """Scaled latents [images, 2, C, S/4, S/4], half precision: as drawn, mirrored. Encodes once."""
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
        for some in read_shard(path)["images"].split(50):
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


def toy_masks(paths: list[Path]) -> Tensor:
    """Share of every latent that each toy covers, uint8 [images, toys, S/4, S/4], as drawn."""
    return torch.cat([read_shard(path)["masks"] for path in paths])


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """As Stable Diffusion's pipelines do: always the full length."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids


class NamedToys(NamedTuple):
    """The K caption tokens of a batch that speak of a toy: its noun, colour or pattern."""

    row: Tensor  # [K] image in the batch
    token: Tensor  # [K] position in the prompt
    mask: Tensor  # [K, S/4, S/4] where the toy is


class Batch(NamedTuple):
    latents: Tensor  # [B, C, S/4, S/4]
    noise: Tensor
    timesteps: Tensor  # [B]
    ids: Tensor  # [B, T]
    masks: Tensor  # [B, 1, S/4, S/4] where any toy is
    named: NamedToys

    def to(self, device: str) -> "Batch":
        named = NamedToys(*(part.to(device) for part in self.named))
        return Batch(*(part.to(device) for part in self[:-1]), named)


def velocity_error(
    model: nn.ModuleDict, scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor, ids: Tensor
) -> Tensor:
    """Squared error of the predicted velocity, [B, C, S/4, S/4]."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    states = model["text_encoder"](ids).last_hidden_state
    return (model["unet"](noisy, timesteps, states).sample.float() - target).square()


def attention_loss(attention: Tensor, named: NamedToys, weight: Tensor) -> Tensor:
    """How far a token's attention [B, N, T] falls outside the toy it speaks of: -log of the share inside.

    The idea of token-level supervision is TokenCompose's (arXiv 2312.03626).
    """
    side = math.isqrt(attention.shape[1])
    there = F.adaptive_avg_pool2d(named.mask[:, None], side).flatten(1)
    maps = attention[named.row, :, named.token].float()
    inside = (maps * there).sum(-1) / maps.sum(-1)
    return -(weight[named.row] * (inside + 1e-3).log()).sum() / max(1, len(inside))


class Loss:
    """Error of the predicted velocity, and of where words of toys look.

    Toys count `TOY_WEIGHT` times as much as what is behind them: per pixel the best prediction stays the same, but the
    toys are the hard part. A word counts the less, the less of its image is left in the noise.
    """

    def __init__(self, model: nn.ModuleDict, scheduler: DDIMScheduler):
        self.model, self.scheduler = model, scheduler
        self.signal = scheduler.alphas_cumprod.to(next(model.parameters()).device)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two losses; to be added."""
        with AttentionRecorder(self.model["unet"]) as recorder:
            error = velocity_error(self.model, self.scheduler, *batch[:4])
        weight = 1 + (TOY_WEIGHT - 1) * batch.masks
        velocity = (error * weight).mean() / weight.mean()
        maps = [recorder.maps(path).mean(dim=1) for path in recorder.layers]
        looking = [attention_loss(attention, batch.named, self.signal[batch.timesteps]) for attention in maps]
        return velocity, ATTENTION_WEIGHT * torch.stack(looking).mean()


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Half of them anywhere, half of them rather in the middle, where the image is decided."""
    anywhere = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    middle = torch.randn(count, generator=generator).sigmoid()
    share = torch.where(torch.rand(count, generator=generator) < 0.5, anywhere, middle)
    return (share * 1000).long().clamp(max=999)


def tokens_of_toys(tokenizer: CLIPTokenizer, told: list[tuple[Scene, str, bool]]) -> list[tuple[int, int, list[int]]]:
    """Captions of scenes, some mirrored -> (row, token, toys) of all words for toys."""
    offsets = tokenizer([text for _, text, _ in told], return_offsets_mapping=True).offset_mapping
    found = []
    for row, (scene, text, mirrored) in enumerate(told):
        for mention in mentions(scene, text, mirrored) if text else []:
            start, end = mention.phrase
            for token, (first, last) in enumerate(offsets[row][:MAX_TOKENS]):
                if start <= first < last <= end:
                    found.append((row, token, list(mention.toys)))
    return found


class Batches:
    """Step -> batch, always the same for the same step: a resumed run goes on as if it had not stopped."""

    def __init__(self, args: argparse.Namespace, tokenizer: CLIPTokenizer):
        self.paths = shards(args)
        self.latents = encode_shards(args, self.paths)
        self.masks = toy_masks(self.paths)
        self.seeds = [int(path.stem) * SHARD + i for path in self.paths for i in range(SHARD)]
        self.tokenizer, self.device = tokenizer, args.device
        self.batch_size = args.batch_size or BATCH_SIZE[args.device]

    def batch(self, step: int) -> Batch:
        rng, generator = random.Random(step), torch.Generator().manual_seed(step)
        chosen = torch.randint(len(self.seeds), (self.batch_size,), generator=generator)
        mirrored = torch.randint(2, (self.batch_size,), generator=generator)
        told = []
        for i, flipped in zip(chosen.tolist(), mirrored.bool().tolist(), strict=True):
            scene = scene_of(self.seeds[i])
            text = "" if rng.random() < CAPTION_DROPOUT else caption(scene, rng, flipped)
            told.append((scene, text, flipped))
        each = self.masks[chosen].float() / 255
        each = torch.where(mirrored.bool()[:, None, None, None], each.flip(-1), each)
        latents = self.latents[chosen, mirrored].float()
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = draw_timesteps(self.batch_size, generator)
        return Batch(
            latents=latents,
            noise=noise,
            timesteps=timesteps,
            ids=tokens(self.tokenizer, [text for _, text, _ in told]),
            masks=each.sum(1, keepdim=True).clamp(max=1),
            named=self._named(told, each),
        ).to(self.device)

    def _named(self, told: list[tuple[Scene, str, bool]], each: Tensor) -> NamedToys:
        found = tokens_of_toys(self.tokenizer, told)
        masks = [each[row, toys].sum(0).clamp(max=1) for row, _, toys in found]
        seen = [number for number, mask in enumerate(masks) if mask.sum() >= 1]  # at least one latent of it
        row = torch.tensor([found[number][0] for number in seen], dtype=torch.long)
        token = torch.tensor([found[number][1] for number in seen], dtype=torch.long)
        return NamedToys(row, token, torch.stack([each.new_zeros(each.shape[2:]), *(masks[n] for n in seen)])[1:])


class HeldOut:
    """The loss on images of held-out scenes, with fixed captions, noise and (even) timesteps."""

    def __init__(self, args: argparse.Namespace, tokenizer: CLIPTokenizer):
        path = picture_folder(args) / "held_out.safetensors"
        latents = encode_shards(args, [path])[:, 0].float()
        captions = [caption(sample_scene(HELD_OUT_SCENES.start + i), random.Random(i)) for i in range(len(latents))]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        timesteps = torch.linspace(0, 999, len(latents)).long()
        everything = [x.to(args.device) for x in (latents, noise, timesteps, tokens(tokenizer, captions))]
        self.batches = list(zip(*(x.split(32) for x in everything), strict=True))

    @torch.no_grad()
    def loss(self, model: nn.ModuleDict, scheduler: DDIMScheduler) -> float:
        """Mean over all pixels alike."""
        return torch.cat([velocity_error(model, scheduler, *batch) for batch in self.batches]).mean().item()


def learning_rate(args: argparse.Namespace, step: int, seconds: float) -> float:
    """Warm-up, constant, and a linear fall to zero in the last minutes."""
    left = max(0.0, 60 * args.minutes - seconds)
    return args.learning_rate * min(1.0, (step + 1) / WARM_UP_STEPS, left / max(1.0, 60 * args.cooldown_minutes))


def load_tokenizer(args: argparse.Namespace) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(args.workdir / "tokenizer")


def checkpoint_path(args: argparse.Namespace) -> Path:
    return args.workdir / f"denoiser-{args.size_px}.pt"


def start_from(folder: Path, model: nn.ModuleDict, tokenizer: CLIPTokenizer) -> None:
    """Takes over an exported model. A token that both vocabularies have keeps its embedding."""
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float()
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float()
    old_ids = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer").get_vocab()
    embeddings = model["text_encoder"].get_input_embeddings().weight
    with torch.no_grad():
        for text, number in tokenizer.get_vocab().items():
            if text in old_ids:
                embeddings[number] = text_encoder.get_input_embeddings().weight[old_ids[text]]
    take_over(model["unet"], unet.state_dict())
    others = {name: weight for name, weight in text_encoder.state_dict().items() if "token_embedding" not in name}
    take_over(model["text_encoder"], others)


def train_denoiser(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    tokenizer, scheduler = load_tokenizer(args), noise_scheduler()
    batches, held_out = Batches(args, tokenizer), HeldOut(args, tokenizer)
    model = new_denoiser(args.size_px, tokenizer).to(args.device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    objective = Loss(model, scheduler)
    record: dict[str, Any] = {"steps": 0, "images": 0, "seconds": 0.0, "held_out": []}
    if state := load_state(checkpoint_path(args)):
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        record = state["record"]
    elif args.start_from:
        start_from(args.start_from, model, tokenizer)
        average.load_state_dict(model.state_dict())
        record["started_from"] = read_record(args.start_from)["denoiser"]
    record |= {
        "machine": machine(args.device),
        "pictures": len(batches.seeds),
        "attention_weight": ATTENTION_WEIGHT,
        "batch_size": batches.batch_size,
        "learning_rate": args.learning_rate,
        "cooldown_minutes": args.cooldown_minutes,
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in model.items()},
    }
    print(json.dumps({name: record[name] for name in record if name not in ("held_out", "started_from")}), flush=True)

    def test_and_note() -> None:
        found = held_out.loss(average, scheduler)
        record["held_out"].append([record["images"], round(found, 4)])
        print(f"held-out loss {found:.4f} after {record['images']} images", flush=True)

    def save() -> None:
        weights = {"model": model.state_dict(), "average": average.state_dict()}
        optimizer_state = optimizer.state_dict()
        save_state(checkpoint_path(args), {**weights, "optimizer": optimizer_state, "record": record})

    log, keep, test = (
        Timer(SECONDS_BETWEEN["log"]),
        Timer(SECONDS_BETWEEN["checkpoint"]),
        Timer(SECONDS_BETWEEN["held out"]),
    )
    losses: list[list[float]] = []
    before = record["images"]
    with Interruption() as interruption, ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(batches.batch, record["steps"])
        while record["seconds"] < 60 * args.minutes and not interruption.asked:
            started = time.time()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(args, record["steps"], record["seconds"])
            batch = upcoming.result()
            upcoming = ahead.submit(batches.batch, record["steps"] + 1)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
                velocity, looking = objective(batch)
            (velocity + looking).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step = record["steps"] = record["steps"] + 1
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            losses.append([velocity.item(), looking.item()])
            record["images"] += batches.batch_size
            if test.rings():
                test_and_note()
            record["seconds"] += time.time() - started
            if passed := log.rings():
                rate = len(losses) * batches.batch_size / passed
                velocity_loss, attention = (sum(values) / len(losses) for values in zip(*losses, strict=True))
                found = f"{record['images']} images, {rate:.1f}/s, loss {velocity_loss:.4f} + {attention:.4f}"
                print(f"step {step}, {found}, {args.minutes - record['seconds'] / 60:.1f} min left", flush=True)
                losses.clear()
            if keep.rings():
                save()
        if record["images"] > before:
            test_and_note()
            save()
    if interruption.asked:
        raise SystemExit(f"stopped; the same command goes on from {checkpoint_path(args)}")


# -------------------------------------------------------------------------------------------- export and look


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

    record = {"size_px": args.size_px, "latent_channels": LATENT_CHANNELS}
    record |= {"vae": read_record(vae_folder(args)), "denoiser": state["record"]}

    def write(folder: Path) -> None:
        pipeline.save_pretrained(folder)
        shutil.copytree(args.workdir / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
        config = folder / "text_encoder" / "config.json"  # names the dtype to compute in
        config.write_text(config.read_text().replace('"float16"', '"float32"'))
        (folder / "record.json").write_text(json.dumps(record, indent=1))
        (folder / "README.md").write_text(model_card(folder), encoding="utf-8")

    save_folder(args.out, write)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB, {state['record']['images']} images seen")


def sheet_prompts(args: argparse.Namespace) -> list[str]:
    colors, places = list(COLORS), [PLACES[name][0] for name in list(PLACES)[: args.places]]
    prompts = []
    for row, noun in enumerate(list(CLASSES)[: args.classes]):
        for column, place in enumerate(places):
            color = colors[(row + 3 * column) % len(colors)]
            prompts.append(f"{article(color)} {color} {noun} {place}")
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


def everything(args: argparse.Namespace) -> None:
    """One stage after the other; what is done is not done again."""
    for run in (data, train_vae, train_tokenizer, train_denoiser, export):
        run(argparse.Namespace(**vars(args) | {"minutes": args.vae_minutes if run is train_vae else args.minutes}))


# -------------------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--workdir", type=Path, default=Path("toybox_run"), help="keeps all results")
    common.add_argument("--size-px", type=int, choices=sorted(UNET_WIDTHS), default=64, help="image side")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    common.add_argument("--device", choices=sorted(BATCH_SIZE), default=device)
    common.add_argument("--threads", type=int, help="CPU threads of this process")
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = whole.add_subparsers(required=True, metavar="STAGE")

    def stage(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        one = stages.add_parser(name, parents=[common], help=text, description=text)
        one.set_defaults(run=run)
        return one

    def rendering(one: argparse.ArgumentParser) -> None:
        one.add_argument("--count", type=int, default=48_000, help="training images in all")
        one.add_argument("--workers", type=int, default=1, help="CPU processes; 1: on the device itself")

    def starting(one: argparse.ArgumentParser) -> None:
        one.add_argument("--start-from", type=Path, metavar="MODEL", help="an exported model; what fits is taken over")

    def denoising(one: argparse.ArgumentParser) -> None:
        one.add_argument("--minutes", type=float, default=85, help="training time in all, earlier runs included")
        one.add_argument("--cooldown-minutes", type=float, default=20, help="the learning rate falls at the end")
        one.add_argument("--learning-rate", type=float, default=8e-4)
        one.add_argument("--batch-size", type=int, help=f"default: {BATCH_SIZE}")

    rendering(stage("data", data, "render images of training scenes, and the held-out ones"))
    one = stage("vae", train_vae, "train the autoencoder on the images there are")
    starting(one)
    one.add_argument("--minutes", type=float, default=25, help="training time in all, earlier runs included")
    stage("tokenizer", train_tokenizer, "learn the vocabulary of the captions")
    one = stage("denoiser", train_denoiser, "train UNet and text encoder on the images there are")
    starting(one)
    denoising(one)
    one = stage("export", export, "write the averaged weights of the latest checkpoint as a model folder")
    one.add_argument("--out", type=Path, required=True)
    one = stage("all", everything, "all of these stages; the same command goes on where it stopped")
    rendering(one)
    starting(one)
    one.add_argument("--vae-minutes", type=float, default=25, help="training time of the autoencoder in all")
    denoising(one)
    one.add_argument("--out", type=Path, required=True)
    one = stage("look", look, "draw samples of an exported model: classes down, places across")
    one.add_argument("--model", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True, help="PNG file")
    one.add_argument("--classes", type=int, default=len(CLASSES))
    one.add_argument("--places", type=int, default=len(PLACES))
    one.add_argument("--guidance-scale", type=float, default=4.0)
    return whole


def main() -> None:
    args = parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
