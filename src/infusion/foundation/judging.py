"""A set of the toybox's judges -> how often it is right on renders that it was not trained on."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from infusion.intervals import Figure, bootstrap, mean, share
from infusion.metrics.encoders import ImageEncoder, load_clip, load_image_encoder
from infusion.toybox.captions import caption
from infusion.toybox.judges import Facts, Judges
from infusion.toybox.render import render
from infusion.toybox.scene import (
    BACKGROUNDS,
    CLASSES,
    HELD_OUT_SCENES,
    STYLES,
    Scene,
    concept_scene,
    individual,
    sample_scene,
)

FIRST_INDIVIDUAL, FIRST_STRANGER = 500_000, 600_000  # concept seeds that no judge is trained on
_FIRST_SCENE = HELD_OUT_SCENES.start + 50_000  # away from those that the foundation model is measured on
_IN_RETRIEVAL = 64
_STRANGERS = 4


def _images(scenes: Sequence[Scene]) -> Tensor:
    return render(scenes).images


def true_facts(scene: Scene) -> dict[str, object]:
    """What a judge is asked of a picture; of several toys, of the first."""
    toy = scene.toys[0]
    return {
        "class": toy.individual.class_noun,
        "color": toy.color_name,
        "background": scene.background,
        "style": scene.style,
        "time": scene.time,
        "size": toy.size_name,
        "accessory": toy.accessory.kind if toy.accessory else None,
    }


def read_facts(facts: Facts, scenes: Sequence[Scene]) -> list[dict[str, object]]:
    """What was read of pictures of these scenes, under the names of `true_facts`. The class is the most probable one;
    the color is that of the class which the scene's first toy has."""
    colors = {noun: facts.color_of(noun) for noun in CLASSES}
    columns: dict[str, Sequence[object]] = {
        "class": facts.class_noun(),
        "color": [colors[scene.toys[0].individual.class_noun][row] for row, scene in enumerate(scenes)],
        "background": facts.background(),
        "style": facts.style(),
        "time": facts.time(),
        "size": facts.size(),
        "accessory": facts.accessory(),
    }
    return [{fact: column[row] for fact, column in columns.items()} for row in range(len(scenes))]


def both_seen(facts: Facts, scenes: Sequence[Scene]) -> list[bool]:
    """Whether the classes of both toys are seen."""
    pairs = [tuple(toy.individual.class_noun for toy in scene.toys) for scene in scenes]
    shown = {pair: facts.shows(*pair) for pair in set(pairs)}
    return [bool(shown[pair][row]) for row, pair in enumerate(pairs)]


def relation_seen(judges: Judges, images: Tensor, scenes: Sequence[Scene]) -> list[bool]:
    """Whether two toys stand as the scene has it. "next to" is right where either side is read."""
    right = []
    for image, scene in zip(images, scenes, strict=True):
        found = judges.relation(image[None], *(toy.individual.class_noun for toy in scene.toys))[0]
        right.append(found in (("left of", "right of") if scene.relation == "next to" else (scene.relation,)))
    return right


def measure_singles(judges: Judges, num: int) -> dict[str, Figure]:
    """Facts of scenes with one toy."""
    scenes = [sample_scene(_FIRST_SCENE + n, num_toys=1) for n in range(num)]
    true, read = [true_facts(scene) for scene in scenes], read_facts(judges.read(_images(scenes)), scenes)
    return {
        f"{fact} of a single toy": share([a[fact] == b[fact] for a, b in zip(true, read, strict=True)])
        for fact in true[0]
    }


def measure_pairs(judges: Judges, num: int) -> dict[str, Figure]:
    """Scenes with two toys of different classes."""
    some = (sample_scene(_FIRST_SCENE + n, num_toys=2) for n in range(2 * num))
    scenes = [scene for scene in some if len({toy.individual.class_noun for toy in scene.toys}) == 2][:num]
    images = _images(scenes)
    facts = judges.read(images)
    read = read_facts(facts, scenes)
    return {
        "both classes of two toys": share(both_seen(facts, scenes)),
        "color of the first of two toys": share(
            [one["color"] == scene.toys[0].color_name for one, scene in zip(read, scenes, strict=True)]
        ),
        "relation of two toys": share(relation_seen(judges, images, scenes)),
    }


def measure_any(judges: Judges, num: int) -> dict[str, Figure]:
    """Scenes of any number of toys: the number, and the overlap of every noun's segment with its toys."""
    scenes = [sample_scene(_FIRST_SCENE + n) for n in range(num)]
    rendering = render(scenes)
    overlaps = []
    for row, scene in enumerate(scenes):
        nouns = [toy.individual.class_noun for toy in scene.toys]
        for noun in set(nouns):
            own = [number for number, other in enumerate(nouns) if other == noun]
            true = rendering.masks[row, own].sum(dim=0) > 0.5
            found = judges.segment(rendering.images[row : row + 1], noun)[0] > 0.5
            overlaps.append(((true & found).sum() / (true | found).sum().clamp(min=1)).item())
    counts = judges.read(rendering.images).count()
    return {
        "number of toys": share([a == len(scene.toys) for a, scene in zip(counts, scenes, strict=True)]),
        "segmentation, mean IoU": mean(overlaps),
    }


def measure_clip(name: str, num: int) -> dict[str, Figure]:
    """Which of 64 captions is the picture's, and which of 64 pictures the caption's."""
    clip = load_clip(name)
    scenes = [sample_scene(_FIRST_SCENE + n) for n in range(num - num % _IN_RETRIEVAL)]
    texts = [caption(scene, random.Random(number)) for number, scene in enumerate(scenes)]
    pictures, read = clip.encode_images(_images(scenes)), clip.encode_texts(texts)
    to_text, to_picture = [], []
    for start in range(0, len(scenes), _IN_RETRIEVAL):
        some = slice(start, start + _IN_RETRIEVAL)
        scores, own = pictures[some] @ read[some].T, torch.arange(_IN_RETRIEVAL)
        to_text += (scores.argmax(dim=1) == own).tolist()
        to_picture += (scores.argmax(dim=0) == own).tolist()
    return {"CLIP: picture to caption, of 64": share(to_text), "CLIP: caption to picture, of 64": share(to_picture)}


def auc(likeness: np.ndarray) -> float:
    """Area under the ROC curve of likeness [N, S, 1 + K]: N individuals in S pictures each, before K strangers each.

    How often a picture of the individual itself (column 0) is more like it than a stranger is; ties count half.
    """
    own, strange = likeness[..., 0].ravel(), np.sort(likeness[..., 1:].ravel())
    below = np.searchsorted(strange, own, "left") + np.searchsorted(strange, own, "right")
    return float(below.mean() / 2 / len(strange))


def identity_likeness(encoder: ImageEncoder, num: int, styles: Sequence[str]) -> np.ndarray:
    """Cosines [N, S, 1 + 4] of individuals' photos to pictures of themselves and of 4 strangers of their class.

    The pictures compared are in another pose and on another background, the same for the individual and the strangers,
    once in each of the S styles.
    """
    rows = []
    for n in range(num):
        seed, noun = FIRST_INDIVIDUAL + n, list(CLASSES)[n % len(CLASSES)]
        here, there = random.Random(f"places {seed}").sample(BACKGROUNDS, 2)
        whom = [seed, *(FIRST_STRANGER + n * _STRANGERS + k for k in range(_STRANGERS))]
        scenes = [concept_scene(individual(seed, noun), seed * 1000, here)]
        for pose, style in enumerate(styles, start=1):
            scenes += [concept_scene(individual(one, noun), one * 1000 + pose, there, style) for one in whom]
        first, *others = encoder.encode_images(_images(scenes)).split([1] + [len(whom)] * len(styles))
        rows.append(torch.stack([other @ first[0] for other in others]))
    return torch.stack(rows).numpy()


def measure_identity(name: str, num: int) -> dict[str, Figure]:
    """The same individual, other pose and background, against strangers of its class; intervals over individuals."""
    encoder = load_image_encoder(name)
    return {
        "identity AUC, photos": bootstrap(auc, identity_likeness(encoder, num, STYLES[:1])),
        "identity AUC, photo against other styles": bootstrap(auc, identity_likeness(encoder, num, STYLES[1:])),
    }


def measure(judges: Judges, num: int = 2000) -> dict[str, Figure]:
    """Every figure with its 95% interval: `num` held-out scenes of each kind, num / 8 individuals but at least 200."""
    name = f"toybox-{judges.name}"
    return {
        **measure_singles(judges, num),
        **measure_pairs(judges, num),
        **measure_any(judges, num),
        **measure_clip(name, num),
        **measure_identity(name, max(200, num // 8)),
    }
