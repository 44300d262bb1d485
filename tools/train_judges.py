"""Renders of the toybox world -> one set of its judges: fact reader, identity encoder and CLIP.

Every set has seeds of its own, for its scenes, its individuals and its networks. Nothing generated is ever trained on.
The command renders its images once, trains the three networks one after the other, and writes them into the folder
that `infusion.toybox.judges` reads; interrupted, the same command goes on where it stopped. The same script runs on CPU
and GPU.
"""

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from resumable import Interruption, Timer, load_state, machine, save_folder, save_state
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer, ResNetConfig, ResNetModel

from infusion.files import whole_file
from infusion.toybox.captions import caption
from infusion.toybox.judges import HEADS, JUDGE_SETS, SIZE_PX, FactReader, judges_dir
from infusion.toybox.render import render
from infusion.toybox.scene import (
    ACCESSORIES,
    BACKGROUNDS,
    CLASSES,
    COLORS,
    MAX_TOYS,
    SIZES,
    STYLES,
    TIMES,
    Scene,
    concept_scene,
    individual,
    sample_scene,
)

FIRST_SEED = {"a": 300_000, "b": 400_000}  # of scenes and of individuals
NUM_SCENES = 24_000
NUM_INDIVIDUALS = 4_500
VIEWS = 4  # images of each individual
SHARD = 1000  # images in one file
MINUTES = {"facts": 30, "identity": 3, "clip": 6}  # of training on one processor core
LEARNING_RATES = {"facts": 2e-3, "identity": 2e-3, "clip": 1.5e-3}
WARM_UP_STEPS = 100
FACTS_BATCH = 32
CLASSES_IN_BATCH, STRANGERS_IN_BATCH = 3, 8  # of the identity encoder: individuals of each class
CLIP_BATCH = 64
TEMPERATURE = 0.07
ANSWERS_WEIGHT = 0.5  # of all facts together, beside the contrastive loss of the CLIP
UNKNOWN = -100  # a label without loss
SECONDS_BETWEEN = {"log": 20, "checkpoint": 60}
FOUNDATION_TOKENIZER = judges_dir("a").parent / "foundation" / "tokenizer"

# ---------------------------------------------------------------------------------------------------- data


def view(seed: int, number: int) -> Scene:
    """Image `number` of an individual: another pose, background, style and hour each time."""
    who = individual(seed, list(CLASSES)[seed % len(CLASSES)])
    backgrounds = random.Random(f"backgrounds {seed}").sample(BACKGROUNDS, VIEWS)
    rng = random.Random(f"view {seed} {number}")
    style, hour = rng.choices(STYLES, (0.46, 0.18, 0.18, 0.18))[0], rng.choices(TIMES, (0.6, 0.2, 0.2))[0]
    return concept_scene(who, seed * 1000 + number, backgrounds[number], style, hour)


def render_shard(path: Path, scenes: list[Scene], device: str) -> None:
    """Writes uint8 images [N, 3, 64, 64], and each toy's share of every second pixel [N, 3, 32, 32]."""
    batch = 16 if device == "cpu" else 250
    drawn = [render(scenes[i : i + batch], SIZE_PX, device) for i in range(0, len(scenes), batch)]
    images = torch.cat([(one.images * 255).round().to(torch.uint8).cpu() for one in drawn])
    masks = torch.cat([(F.avg_pool2d(one.masks, 2) * 255).round().to(torch.uint8).cpu() for one in drawn])
    with whole_file(path) as file:
        save_file({"images": images, "masks": masks}, file)


def render_all(args: argparse.Namespace) -> None:
    first = FIRST_SEED[args.set]
    jobs: list[tuple[str, int, Callable[[int], Scene]]] = []
    jobs += [(f"scenes-{n // SHARD:02d}", n, lambda n: sample_scene(first + n)) for n in range(0, NUM_SCENES, SHARD)]
    views = range(0, NUM_INDIVIDUALS * VIEWS, SHARD)
    jobs += [(f"views-{n // SHARD:02d}", n, lambda n: view(first + n // VIEWS, n % VIEWS)) for n in views]
    for done, (name, start, scene) in enumerate(jobs, start=1):
        path = args.workdir / f"{name}.safetensors"
        if not path.exists():
            render_shard(path, [scene(n) for n in range(start, start + SHARD)], args.device)
            print(f"rendered {done}/{len(jobs)}", flush=True)


def load_shards(args: argparse.Namespace, kind: str) -> dict[str, Tensor]:
    shards = [load_file(path) for path in sorted(args.workdir.glob(f"{kind}-*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """The truth by head of the fact reader; `toys` [N, 3] is each toy's class, 0 where there is none.

    A class's colour is unknown where its toys differ, the size where there are several toys.
    """
    nouns, names, number = list(CLASSES), list(COLORS), len(scenes)
    toys, colors = torch.zeros(number, MAX_TOYS).long(), torch.full((number, len(nouns)), UNKNOWN)
    classes, accessories = torch.zeros(number, len(nouns)), torch.zeros(number, len(ACCESSORIES))
    for row, scene in enumerate(scenes):
        for place, toy in enumerate(scene.toys):
            noun, color = nouns.index(toy.individual.class_noun), names.index(toy.color_name)
            toys[row, place] = noun
            colors[row, noun] = color if not classes[row, noun] or colors[row, noun] == color else UNKNOWN
            classes[row, noun] = 1
            if toy.accessory:
                accessories[row, ACCESSORIES.index(toy.accessory.kind)] = 1
    alone = [scene.toys[0].size_name if len(scene.toys) == 1 else None for scene in scenes]
    return {
        "toys": toys,
        "colors": colors,
        "classes": classes,
        "accessories": accessories,
        "backgrounds": torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes]),
        "styles": torch.tensor([STYLES.index(scene.style) for scene in scenes]),
        "times": torch.tensor([TIMES.index(scene.time) for scene in scenes]),
        "sizes": torch.tensor([SIZES.index(name) if name else UNKNOWN for name in alone]),
        "counts": torch.tensor([len(scene.toys) - 1 for scene in scenes]),
    }


def augmented(pictures: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 images and masks -> what a generator might have made of them, in [0, 1]; and which are mirrored [B].

    Shifted, and each image by chance mirrored, lighter or darker, blurred, noisy.
    """

    def draw(low: float, high: float) -> Tensor:
        drawn = torch.empty(len(pictures), 1, 1, 1).uniform_(low, high, generator=generator)
        return drawn.to(pictures.device)

    images, shares = pictures.float() / 255, masks.float() / 255
    right, down = torch.randint(5, (2,), generator=generator).tolist()
    images = F.pad(images, [4] * 4, mode="replicate")[..., 2 * down :, 2 * right :][..., :SIZE_PX, :SIZE_PX]
    shares = F.pad(shares, [2] * 4)[..., down:, right:][..., : SIZE_PX // 2, : SIZE_PX // 2]
    mirrored = draw(0, 1) < 0.5
    images = torch.where(mirrored, images.flip(-1), images) * draw(0.9, 1.1)
    shares = torch.where(mirrored, shares.flip(-1), shares)
    blurred = F.avg_pool2d(F.pad(images, [1] * 4, mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, draw(-1, 1).clamp(min=0))
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    images = images + draw(-0.04, 0.04).clamp(min=0) * noise
    return images.clamp(0, 1).contiguous(memory_format=torch.channels_last), shares, mirrored[:, 0, 0, 0]


# ---------------------------------------------------------------------------------------------------- objectives


def answer_loss(name: str, logits: Tensor, truth: Tensor) -> Tensor:
    if truth.is_floating_point():  # yes or no, for every class or accessory
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(dim=1).mean()
    if name == "colors":
        logits, truth = logits.flatten(0, 1), truth.flatten()
    known = (truth != UNKNOWN).sum().clamp(min=1)
    return F.cross_entropy(logits, truth, ignore_index=UNKNOWN, reduction="sum") / known


def segment_loss(logits: Tensor, toys: Tensor, masks: Tensor) -> Tensor:
    """Every pixel's cross entropy to the shares of the nouns in it; toys [B, 3], masks [B, 3, 32, 32]."""
    where = toys[:, :, None, None].expand_as(masks)
    shares = torch.zeros_like(logits).scatter_add_(1, where, masks)
    shares[:, -1] = 1 - masks.sum(dim=1)
    return F.cross_entropy(logits, shares)


def contrastive_loss(features: Tensor, group: Tensor) -> Tensor:
    """Supervised contrastive (Khosla et al. 2020, eq. 2): each image's likeness to the others of its group.

    features [B, D]; group [B] says which images show one individual.
    """
    unit = F.normalize(features, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    scores = (unit @ unit.T / TEMPERATURE).masked_fill(itself, -math.inf).log_softmax(dim=1)
    same = (group[:, None] == group) & ~itself
    return -(scores.masked_fill(~same, 0).sum(dim=1) / same.sum(dim=1)).mean()


class ClipWithAnswers(nn.Module):
    """A CLIP, and answers read off its image features while it is trained: they teach it to look at the toys."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        width, joint = {"image": 128, "text": 96}, 96
        common = {"hidden_act": "relu", "projection_dim": joint, "attention_dropout": 0.0}
        text = {
            "vocab_size": len(tokenizer),
            "hidden_size": width["text"],
            "intermediate_size": 4 * width["text"],
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        vision = {
            "hidden_size": width["image"],
            "intermediate_size": 2 * width["image"],
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIZE_PX,
            "patch_size": 8,
        }
        self.clip = CLIPModel(
            CLIPConfig(text_config=common | text, vision_config=common | vision, projection_dim=joint)
        )
        answers = {**HEADS, "colors": len(CLASSES) * len(COLORS)}
        self.heads = nn.ModuleDict({name: nn.Linear(width["image"], number) for name, number in answers.items()})

    def forward(self, images: Tensor, tokens: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss of pairs (Radford et al. 2021, figure 3), and the logits of the answers."""
        clip = self.clip
        seen = clip.vision_model(pixel_values=(images - 0.5) / 0.25).pooler_output
        read = clip.text_model(**tokens).pooler_output
        pictures, texts = F.normalize(clip.visual_projection(seen)), F.normalize(clip.text_projection(read))
        scores = clip.logit_scale.clamp(max=math.log(100)).exp() * pictures.float() @ texts.float().T
        pair = torch.arange(len(scores), device=scores.device)
        loss = (F.cross_entropy(scores, pair) + F.cross_entropy(scores.T, pair)) / 2
        answers = {name: head(seen) for name, head in self.heads.items()}
        answers["colors"] = answers["colors"].unflatten(1, (len(CLASSES), len(COLORS)))
        return loss, answers


# ---------------------------------------------------------------------------------------------------- training


def train(
    args: argparse.Namespace, name: str, model: nn.Module, losses: Callable[[torch.Generator], dict[str, Tensor]]
) -> dict[str, Any]:
    """Minimises the sum of `losses(generator)` for this network's time; the record of the training."""
    seconds = 60 * vars(args)[f"{name}_minutes"]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02, fused=True)
    record: dict[str, Any] = {"steps": 0, "seconds": 0.0}
    path = args.workdir / f"{name}.pt"
    if state := load_state(path):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        record = state["record"]
    record["parameters"] = sum(parameter.numel() for parameter in model.parameters())

    def save() -> None:
        save_state(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "record": record})

    log, keep = Timer(SECONDS_BETWEEN["log"]), Timer(SECONDS_BETWEEN["checkpoint"])
    seen: list[dict[str, float]] = []
    model.train()
    with Interruption() as interruption:
        while record["seconds"] < seconds and not interruption.asked:
            started = time.time()
            progress = record["seconds"] / seconds
            for group in optimizer.param_groups:
                warm_up = min(1, (record["steps"] + 1) / WARM_UP_STEPS)
                group["lr"] = (
                    LEARNING_RATES[name] * warm_up * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * progress)))
                )
            generator = torch.Generator().manual_seed(FIRST_SEED[args.set] + record["steps"])
            found = losses(generator)
            torch.stack(list(found.values())).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            seen.append({key: value.item() for key, value in found.items()})
            record["steps"] += 1
            record["seconds"] += time.time() - started
            if log.rings():
                means = ", ".join(f"{key} {sum(one[key] for one in seen) / len(seen):.3f}" for key in seen[0])
                left = (seconds - record["seconds"]) / 60
                print(f"{name} step {record['steps']}: {means}, {left:.1f} min left", flush=True)
                seen.clear()
            if keep.rings():
                save()
    save()
    if interruption.asked:
        raise SystemExit(f"stopped; the same command goes on from {path}")
    model.eval()
    return record


def autocast(args: argparse.Namespace) -> torch.autocast:
    return torch.autocast(args.device, torch.bfloat16)


def train_facts(args: argparse.Namespace, scenes: list[Scene], pictures: dict[str, Tensor]) -> tuple[FactReader, dict]:
    reader = FactReader().to(args.device, memory_format=torch.channels_last)
    truth = labels(scenes)

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(scenes), (FACTS_BATCH,), generator=generator)
        raw = (pictures[name][rows].to(args.device) for name in ("images", "masks"))
        images, masks, _ = augmented(*raw, generator)
        true = {name: values[rows].to(args.device) for name, values in truth.items()}
        with autocast(args):
            logits = reader(images)
        logits = {name: values.float() for name, values in logits.items()}
        found = {"segments": segment_loss(logits.pop("segments"), true["toys"], masks)}
        return found | {name: answer_loss(name, values, true[name]) for name, values in logits.items()}

    return reader, train(args, "facts", reader, losses)


def train_identity(args: argparse.Namespace) -> tuple[ResNetModel, dict]:
    config = ResNetConfig(embedding_size=32, hidden_sizes=[48, 96, 160], depths=[1, 1, 1], layer_type="basic")
    encoder = ResNetModel(config).to(args.device, memory_format=torch.channels_last)
    pictures = load_shards(args, "views")
    of_class = NUM_INDIVIDUALS // len(CLASSES)  # individual n is of class n modulo 16

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        classes = torch.randperm(len(CLASSES), generator=generator)[:CLASSES_IN_BATCH]
        who = torch.stack([torch.randperm(of_class, generator=generator)[:STRANGERS_IN_BATCH] for _ in classes])
        individuals = (who * len(CLASSES) + classes[:, None]).flatten()
        rows = (individuals[:, None] * VIEWS + torch.arange(VIEWS)).flatten()
        raw = (pictures[name][rows].to(args.device) for name in ("images", "masks"))
        images, _, _ = augmented(*raw, generator)
        with autocast(args):
            features = encoder((images - 0.5) / 0.25).pooler_output.flatten(1)
        return {"contrastive": contrastive_loss(features.float(), individuals.repeat_interleave(VIEWS).to(args.device))}

    return encoder, train(args, "identity", encoder, losses)


def train_clip(args: argparse.Namespace, scenes: list[Scene], pictures: dict[str, Tensor]) -> tuple[CLIPModel, dict]:
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    model = ClipWithAnswers(tokenizer).to(args.device)
    truth = labels(scenes)

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(scenes), (CLIP_BATCH,), generator=generator)
        raw = (pictures[name][rows].to(args.device) for name in ("images", "masks"))
        images, _, mirrored = augmented(*raw, generator)
        rng = random.Random(generator.initial_seed())
        pairs = zip(rows.tolist(), mirrored.tolist(), strict=True)
        texts = [caption(scenes[row], rng, flipped) for row, flipped in pairs]
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(args.device)
        with autocast(args):
            contrast, answers = model(images, tokens)
        found = {name: answer_loss(name, x.float(), truth[name][rows].to(args.device)) for name, x in answers.items()}
        return {"contrastive": contrast.float(), "answers": ANSWERS_WEIGHT * torch.stack(list(found.values())).sum()}

    record = train(args, "clip", model, losses)
    return model.clip, record


# ---------------------------------------------------------------------------------------------------- export


def export(folder: Path, reader: FactReader, identity: ResNetModel, clip: CLIPModel, tokenizer: Path) -> None:
    """Weights in float16. The processors say at which size and with which mean the encoders were trained."""
    (folder / "facts").mkdir()
    weights = {name: x.half() if x.is_floating_point() else x for name, x in reader.state_dict().items()}
    save_file({name: x.contiguous() for name, x in weights.items()}, folder / "facts" / "model.safetensors")
    size = {"height": SIZE_PX, "width": SIZE_PX}
    processor = CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    for name, model in (("identity", identity), ("clip", clip)):
        model.to(memory_format=torch.contiguous_format).half().save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        config = folder / name / "config.json"  # names the dtype to compute in
        config.write_text(config.read_text().replace('"float16"', '"float32"'))
    shutil.copytree(tokenizer, folder / "clip", dirs_exist_ok=True)
    for file in folder.glob("*/*"):
        file.chmod(0o644)  # safetensors lets only their owner read them


def run(args: argparse.Namespace) -> None:
    args.workdir.mkdir(parents=True, exist_ok=True)
    render_all(args)
    first = FIRST_SEED[args.set]
    scenes = [sample_scene(first + n) for n in range(NUM_SCENES)]
    pictures = load_shards(args, "scenes")
    torch.manual_seed(first)
    reader, facts_record = train_facts(args, scenes, pictures)
    identity, identity_record = train_identity(args)
    clip, clip_record = train_clip(args, scenes, pictures)
    record = {
        "set": args.set,
        "machine": machine(args.device),
        "scene_seeds": [first, first + NUM_SCENES],
        "individual_seeds": [first, first + NUM_INDIVIDUALS],
        "views_of_an_individual": VIEWS,
        "facts": facts_record,
        "identity": identity_record,
        "clip": clip_record,
    }

    def write(folder: Path) -> None:
        export(folder, reader, identity, clip, args.tokenizer)
        (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")

    save_folder(args.out or judges_dir(args.set), write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="keeps images and checkpoints")
    parser.add_argument("--set", choices=JUDGE_SETS, required=True)
    for name, minutes in MINUTES.items():
        text = "training time in all, earlier runs included"
        parser.add_argument(f"--{name}-minutes", type=float, default=minutes, help=text)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--tokenizer", type=Path, default=FOUNDATION_TOKENIZER, help="folder of a CLIPTokenizer")
    parser.add_argument("--out", type=Path, help="default: the package's own folder of the set")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    run(args)


if __name__ == "__main__":
    main()
