"""Gates measure what they say, on held-out scenes only, and the card tells what they found."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from infusion.base import Base, load_base
from infusion.foundation import gates
from infusion.foundation.card import model_card, promise, table, write_card, write_gates
from infusion.foundation.gates import (
    draw_captions,
    held_out_captions,
    measure_attention,
    measure_model,
    measure_pairs,
    measure_singles,
    noun_maps,
    soft_iou,
)
from infusion.intervals import Figure, Gate, share
from infusion.toybox.judges import Facts, load_judges
from infusion.toybox.render import render
from infusion.toybox.scene import ACCESSORIES, BACKGROUNDS, CLASSES, COLORS, HELD_OUT_SCENES, SIZES, STYLES, TIMES


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_captions_are_of_held_out_scenes():
    for num_toys in (1, 2):
        found = held_out_captions(num_toys, 20)
        assert len({one.seed for one in found}) == 20 and all(one.seed in HELD_OUT_SCENES for one in found)
        assert all(len({toy.individual.class_noun for toy in one.scene.toys}) == num_toys for one in found)


class Seeing:
    """Judges that read the truth, or what `wrong` makes of it."""

    def __init__(self, wanted, wrong=lambda scene: scene):
        self.scenes = [wrong(one.scene) for one in wanted]

    def read(self, images):
        def one_hot(names, values):
            return torch.tensor([[float(name == value) for name in names] for value in values])

        toys = [scene.toys[0] for scene in self.scenes]
        classes = torch.stack(
            [one_hot(CLASSES, [toy.individual.class_noun for toy in scene.toys]).sum(0) for scene in self.scenes]
        )
        colors = one_hot(COLORS, [toy.color_name for toy in toys])[:, None].expand(-1, len(CLASSES), -1)
        worn = one_hot(ACCESSORIES, [toy.accessory.kind if toy.accessory else None for toy in toys])
        return Facts(
            classes=classes,
            colors=colors,
            backgrounds=one_hot(BACKGROUNDS, [scene.background for scene in self.scenes]),
            styles=one_hot(STYLES, [scene.style for scene in self.scenes]),
            times=one_hot(TIMES, [scene.time for scene in self.scenes]),
            accessories=worn,
            sizes=one_hot(SIZES, [toy.size_name for toy in toys]),
            counts=one_hot((1, 2, 3), [len(scene.toys) for scene in self.scenes]),
        )

    def relation(self, image, first, second):
        scene = self.scenes[round(image.mean().item())]  # a picture's brightness is its number
        return ["left of" if scene.relation == "next to" else scene.relation]


def test_only_what_a_caption_tells_is_asked_of_its_picture():
    singles = held_out_captions(1, 60)
    found = {gate.name: figure for gate, figure in measure_singles(singles, Seeing(singles).read(None))}
    assert {figure.value for figure in found.values()} == {1}
    assert found["class of a single toy"].num == 60
    telling = sum(
        f" {one.scene.toys[0].color_name} {one.scene.toys[0].individual.class_noun}" in f" {one.text}"
        for one in singles
    )
    assert telling <= found["color of a single toy"].num < 60
    mistaken = Seeing(singles, lambda scene: replace(scene, background="beach", style="sketch"))
    found = {gate.name: figure for gate, figure in measure_singles(singles, mistaken.read(None))}
    assert found["class of a single toy"].value == 1
    assert found["background"].value < 0.4 and found["style"].value < 0.6


def test_two_toys_are_asked_for_and_their_relation():
    pairs = held_out_captions(2, 40)
    images = torch.arange(40.0).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    right: Any = Seeing(pairs)
    found = {gate.name: figure for gate, figure in measure_pairs(pairs, images, right)}
    assert {figure.value for figure in found.values()} == {1} and found[gates.BOTH.name].num == 40

    def swapped(scene):
        return replace(
            scene, relation={"left of": "right of", "right of": "left of"}.get(scene.relation, scene.relation)
        )

    wrong: Any = Seeing(pairs, swapped)
    found = {gate.name: figure for gate, figure in measure_pairs(pairs, images, wrong)}
    assert found[gates.RELATION.name].value < 0.7 and found[gates.BOTH.name].value == 1
    alone: Any = Seeing(pairs, lambda scene: replace(scene, toys=scene.toys[:1]))
    facts_of_one = alone.read(None)
    alone.read, alone.relation = lambda images: facts_of_one, lambda *_: [None]
    found = {gate.name: figure for gate, figure in measure_pairs(pairs, images, alone)}
    assert found[gates.BOTH.name].value == 0 == found[gates.RELATION.name].value


@pytest.mark.parametrize("swapped", [False, True])
def test_the_attention_gate_knows_own_from_other(base: Base, monkeypatch, swapped):
    pairs = held_out_captions(2, 8)

    def planted(base, one, picture):
        masks = list(adaptive_avg_pool2d(render([one.scene], base.size_px).masks[0, :2], (8, 8)))
        return masks[::-1] if swapped else masks

    monkeypatch.setattr(gates, "noun_maps", planted)
    (_, own), (gate, ratio) = measure_attention(base, pairs, quiet)
    assert gate.passed(ratio) is not swapped
    assert own.value < 0.3 if swapped else own.value == pytest.approx(1)


def test_soft_iou():
    a, b = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.5, 1.0])
    assert soft_iou(a, a) == 1
    assert soft_iou(a, b) == pytest.approx(0.5 / 2.5)


def test_each_noun_has_a_map_of_its_own(base: Base):
    one = held_out_captions(2, 1)[0]
    picture = render([one.scene], base.size_px).images[0]
    first, second = noun_maps(base, one, picture)
    assert first.shape == (8, 8) and first.min() == 0 and first.max() == 1
    assert not torch.equal(first, second)
    assert torch.equal(first, noun_maps(base, one, picture)[0])


def test_what_is_drawn_is_not_drawn_again_unless_by_another_model(base: Base, tmp_path: Path, monkeypatch):
    wanted = held_out_captions(1, 3)
    monkeypatch.setattr(gates, "NUM_INFERENCE_STEPS", 2)
    calls = []
    first = draw_captions(base, wanted, tmp_path / "singles", lambda *progress: calls.append(progress))
    assert calls == [("Drawing singles", 3, 3)] and first.shape == (3, 3, 16, 16)
    (tmp_path / "singles" / f"{wanted[1].seed}.png").unlink()
    again = draw_captions(base, wanted, tmp_path / "singles", quiet)
    assert torch.equal(first, again)
    with torch.no_grad():
        base.vae.decoder.conv_out.bias += 0.1
    assert not torch.equal(first, draw_captions(base, wanted, tmp_path / "singles", quiet))


@pytest.mark.slow
def test_the_card_tells_every_gate_and_which_are_red(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(gates, "NUM_INFERENCE_STEPS", 1)  # one step draws nothing
    measured = measure_model(load_base("toybox", "cpu"), load_judges("a"), tmp_path / "pictures", 10, 10, quiet)
    found = {gate.name: (gate, figure) for gate, figure in measured}
    assert len(found) == len(measured)
    gate, figure = found[gates.OF_SINGLES["class"].name]
    assert figure.num == 10 and figure.value < 0.5 and gate.passed(figure) is False
    curve = [[1000 * 2**n, 1 - 0.1 * n] for n in range(8)]
    record = {"steps": 5, "seconds": 60.0, "machine": "a computer", "parameters": 9}
    denoiser = record | {"images": 7, "held_out": curve, "pictures": 3, "attention_weight": 0.1}
    denoiser["parameters"] = {"unet": 1, "text_encoder": 2}
    about = {"size_px": 16, "latent_channels": 4, "vae": record, "denoiser": denoiser}
    (tmp_path / "record.json").write_text(json.dumps(about))
    assert "Not measured yet" in model_card(tmp_path)
    write_gates(tmp_path / "gates.json", measured, {"guidance_scale": 5, "num_inference_steps": 1, "judges": "a"})
    write_card(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert table(measured) in card and card.count("RED") >= 4
    assert "fell by 0.100 with every doubling" in card


def test_a_gate_is_green_from_its_bound_on():
    gate = Gate("colour", 0.9)
    assert gate.passed(share([True] * 9 + [False])) and not gate.passed(share([True] * 8 + [False] * 2))
    assert Gate("only told").passed(Figure(0.1, 0, 1, 5)) is None
    assert "90.0%" in table([(gate, share([True] * 9 + [False]))]) and "green" in table([(gate, share([True]))])


def test_a_short_or_flat_curve_promises_nothing():
    assert "too short" in promise([[100, 0.5]])
    assert "no longer fell" in promise([[100, 0.5], [120, 0.5], [140, 0.6]])
