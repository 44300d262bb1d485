"""A foundation model of the embedded world + its judges -> what every gate measures."""

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from infusion.base import Base
from infusion.base.cross_attention import AttentionRecorder
from infusion.base.latents import decode_latents
from infusion.concepts.masks import NOISE_LEVELS, stretched
from infusion.files import save_png
from infusion.foundation import judging
from infusion.generation.guidance import Guided
from infusion.generation.sampling import sample, seeded_noise
from infusion.intervals import Gate, Measured, bootstrap, mean, share
from infusion.toybox.captions import caption, told_facts
from infusion.toybox.judges import Facts, Judges, load_judges
from infusion.toybox.render import render
from infusion.toybox.scene import HELD_OUT_SCENES, Scene, sample_scene

GUIDANCE_SCALE = 5.0
NUM_INFERENCE_STEPS = 25
_AT_ONCE = 10
_SKIPPED = 1000  # held-out scenes that the training measures its loss on


AUTOENCODER = Gate("autoencoder, PSNR on held-out pictures", 30, "dB")
OWN_TOY = Gate("attention to a noun: soft IoU with its own toy", unit="")
ATTENTION = Gate("attention to a noun: soft IoU with its own toy over that with the other", 2, "x")
OF_SINGLES = {
    "class": Gate("class of a single toy", 0.95),
    "background": Gate("background", 0.95),
    "color": Gate("color of a single toy", 0.90),
    "style": Gate("style"),
    "time": Gate("time of day"),
    "size": Gate("size of a single toy"),
    "accessory": Gate("accessory of a single toy"),
}
BOTH = Gate("both toys present, captions of two", 0.80)
COLOR_OF_TWO = Gate("color of the first of two toys")
RELATION = Gate("relation of two toys")
SECONDS = Gate(f"seconds for one picture of {NUM_INFERENCE_STEPS} guided steps", unit="s")
JUDGES_AT_LEAST = {
    "class of a single toy": 0.98,
    "background of a single toy": 0.98,
    "color of a single toy": 0.98,
    "style of a single toy": 0.98,
    "identity AUC, photos": 0.97,
}
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HeldOut:
    """A held-out scene and the caption that a picture is drawn from. The scene's seed is the picture's."""

    seed: int
    scene: Scene
    text: str

    def tells(self, fact: str) -> bool:
        return fact in told_facts(self.scene, self.text)


def held_out_captions(num_toys: int, number: int) -> list[HeldOut]:
    """Captions of held-out scenes; two toys are of different classes, so that each noun means one."""
    found: list[HeldOut] = []
    for seed in HELD_OUT_SCENES[_SKIPPED:]:
        scene = sample_scene(seed)
        classes = {toy.individual.class_noun for toy in scene.toys}
        if len(scene.toys) == len(classes) == num_toys:
            found.append(HeldOut(seed, scene, caption(scene, random.Random(seed))))
        if len(found) == number:
            break
    return found


# ------------------------------------------------------------------------------------------------ what is drawn


def draw_captions(base: Base, wanted: Sequence[HeldOut], folder: Path, report: Report) -> Tensor:
    """A picture of every caption, [N, 3, S, S] in [0, 1]. Those that this model has drawn before are read again."""
    mark = _mark(base)
    paths = [folder / f"{one.seed}.png" for one in wanted]
    missing = [number for number, path in enumerate(paths) if not _drawn_by(path, mark, wanted[number].text)]
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        images = _draw(base, [wanted[number].text for number in some], [wanted[number].seed for number in some])
        for number, image in zip(some, images, strict=True):
            save_png(image, paths[number], {"prompt": wanted[number].text, "drawn by": mark})
        report(f"Drawing {folder.name}", len(wanted) - len(missing) + start + len(some), len(wanted))
    return torch.stack([to_tensor(Image.open(path)) for path in paths])


def _draw(base: Base, texts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    noise = seeded_noise([torch.Generator().manual_seed(seed) for seed in seeds], base.latent_shape)
    guided = Guided(base, base.encode([""]), GUIDANCE_SCALE)
    noise = noise.to(base.device, base.dtype)
    latents = sample(guided, base.scheduler, noise, base.encode(texts), NUM_INFERENCE_STEPS)
    return decode_latents(base, latents)


def _mark(base: Base) -> str:
    """Of everything that a picture depends on but its caption and seed."""
    found = hashlib.sha256(f"{GUIDANCE_SCALE} {NUM_INFERENCE_STEPS}".encode())
    for part in (base.text_encoder, base.network, base.vae):
        for weight in part.state_dict().values():
            found.update(weight.float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _drawn_by(path: Path, mark: str, text: str) -> bool:
    if not path.exists():
        return False
    with Image.open(path) as image:
        return (image.info.get("drawn by"), image.info.get("prompt")) == (mark, text)


def to_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


# --------------------------------------------------------------------------------------------- what is measured


def measure_autoencoder(base: Base, number: int) -> Iterator[Measured]:
    values = []
    scenes = map(sample_scene, HELD_OUT_SCENES[_SKIPPED:])
    for _ in range(0, number, _AT_ONCE):
        images = render(list(islice(scenes, _AT_ONCE)), base.size_px).images.to(base.device, base.dtype)
        with torch.no_grad():
            latents = base.vae.encode(images * 2 - 1).latent_dist.mode()
            decoded = (base.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        values += (-10 * (decoded - images).float().square().mean(dim=(1, 2, 3)).log10()).tolist()
    yield AUTOENCODER, mean(values[:number])


def _share_told(gate: Gate, fact: str, right: Sequence[bool], wanted: Sequence[HeldOut]) -> Iterator[Measured]:
    """Share of the captions that tell a fact whose pictures show it; nothing, where none tells it."""
    asked = [is_right for is_right, one in zip(right, wanted, strict=True) if one.tells(fact)]
    if asked:
        yield gate, share(asked)


def _right(facts: Facts, wanted: Sequence[HeldOut], fact: str) -> list[bool]:
    scenes = [one.scene for one in wanted]
    read = judging.read_facts(facts, scenes)
    return [found[fact] == judging.true_facts(scene)[fact] for found, scene in zip(read, scenes, strict=True)]


def measure_singles(wanted: Sequence[HeldOut], facts: Facts) -> Iterator[Measured]:
    for fact, gate in OF_SINGLES.items():
        yield from _share_told(gate, fact, _right(facts, wanted, fact), wanted)


def measure_pairs(wanted: Sequence[HeldOut], pictures: Tensor, judges: Judges) -> Iterator[Measured]:
    facts, scenes = judges.read(pictures), [one.scene for one in wanted]
    yield BOTH, share(judging.both_seen(facts, scenes))
    yield from _share_told(COLOR_OF_TWO, "color", _right(facts, wanted, "color"), wanted)
    yield from _share_told(RELATION, "relation", judging.relation_seen(judges, pictures, scenes), wanted)


def soft_iou(first: Tensor, second: Tensor) -> float:
    """Sum of minima over sum of maxima."""
    return (torch.minimum(first, second).sum() / torch.maximum(first, second).sum()).item()


def _with_placeholders(one: HeldOut) -> tuple[str, dict[str, str]]:
    """The caption with its two nouns as placeholders, so that the model's own spans tell where they are."""
    nouns = {f"toy-{number}": toy.individual.class_noun for number, toy in enumerate(one.scene.toys)}
    text = one.text
    for name, noun in nouns.items():
        text = re.sub(rf"\b{noun}\b", f"<{name}>", text, count=1)
    return text, nouns


@torch.no_grad()
def noun_maps(base: Base, one: HeldOut, picture: Tensor) -> list[Tensor]:
    """What the attention to each noun covers of a rendered picture [3, S, S]: [H, W] in [0, 1] each.

    Mean over layers, heads and three noise levels; stretched from the darkest tenth to the brightest twentieth.
    """
    text, nouns = _with_placeholders(one)
    conditioning = base.encode([text], nouns)
    latents = base.vae.encode((picture[None] * 2 - 1).to(base.device, base.dtype)).latent_dist.mode()
    latents = latents * base.vae.config.scaling_factor
    height, width = latents.shape[-2:]
    noise = seeded_noise([torch.Generator().manual_seed(one.seed)], latents.shape[1:]).to(latents)
    totals = [torch.zeros(height, width) for _ in nouns]
    for level in NOISE_LEVELS:
        timestep = torch.tensor(int(level * base.noise_schedule.config.num_train_timesteps), device=base.device)
        with AttentionRecorder(base.network) as recorder:
            base.predict(base.noise_schedule.add_noise(latents, noise, timestep[None]), timestep, conditioning)
            for total, name in zip(totals, nouns, strict=True):
                total += recorder.token_map([conditioning.concept_tokens[0][name]], height, width)[0]
    return [stretched(total) for total in totals]


def measure_attention(base: Base, wanted: Sequence[HeldOut], report: Report) -> Iterator[Measured]:
    """Soft IoU of each noun's map with the true mask of its own toy, and with the other noun's (the control)."""
    own_and_other = []
    for number, one in enumerate(wanted, start=1):
        rendering = render([one.scene], base.size_px)
        maps = noun_maps(base, one, rendering.images[0])
        masks = F.adaptive_avg_pool2d(rendering.masks[0, :2], (len(maps[0]), len(maps[0])))
        own = [soft_iou(found, mask) for found, mask in zip(maps, masks, strict=True)]
        other = [soft_iou(found, mask) for found, mask in zip(maps, masks.flip(0), strict=True)]
        own_and_other.append((sum(own) / 2, sum(other) / 2))
        report("Attention", number, len(wanted))
    values = np.array(own_and_other)
    yield OWN_TOY, mean(values[:, 0])
    yield ATTENTION, bootstrap(lambda some: float(some[:, 0].mean() / some[:, 1].mean()), values)


def measure_seconds(base: Base, repeats: int = 5) -> Iterator[Measured]:
    """Seconds for one guided picture, decoded, drawn alone, on this machine at this moment."""
    seconds = []
    for seed in range(repeats + 1):
        started = time.perf_counter()
        _draw(base, ["a photo of a red cat on the beach"], [seed])
        seconds.append(time.perf_counter() - started)
    yield SECONDS, mean(seconds[1:])


def measure_judges(name: str, num: int) -> Iterator[Measured]:
    """The judges' own accuracy, on `num` held-out renders of each kind."""
    for what, figure in judging.measure(load_judges(name), num).items():
        unit = "" if "AUC" in what or "IoU" in what else "%"
        yield Gate(f"judges {name}: {what}", JUDGES_AT_LEAST.get(what), unit), figure


def measure_model(
    base: Base, judges: Judges, folder: Path, num_single: int, num_pairs: int, report: Report
) -> list[Measured]:
    """Every gate of the foundation model. The pictures are kept in `folder`; what is there is not drawn again."""
    singles, pairs = held_out_captions(1, num_single), held_out_captions(2, num_pairs)
    found = [*measure_autoencoder(base, num_single), *measure_attention(base, pairs, report)]
    found += measure_singles(singles, judges.read(draw_captions(base, singles, folder / "singles", report)))
    found += measure_pairs(pairs, draw_captions(base, pairs, folder / "pairs", report), judges)
    return [*found, *measure_seconds(base)]
