import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from PIL import Image
from transformers import CLIPSegForImageSegmentation

from infusion.base.prompts import TEMPLATES
from infusion.concepts import segmenter
from infusion.concepts.masks import subject_masks
from infusion.concepts.segmenter import Segmenter, load_segmenter, segmented
from infusion.errors import UserError


@pytest.fixture
def clipseg(clipseg_dir):
    return load_segmenter(clipseg_dir)


def levels(image):
    return np.asarray(image).astype(float) / 255


def test_the_paper_s_mask(clipseg, clipseg_dir, concept):
    without = replace(concept, masks=(None, *concept.masks[1:]), mask_sources=(None, "given", "given"))
    filled = segmented(without, clipseg)
    assert filled.mask_sources == ("clipseg", "given", "given") and filled.masks[1:] == concept.masks[1:]

    image = clipseg.prepare(torch.from_numpy(np.array(concept.images[0])).permute(2, 0, 1)[None] / 255)
    model = CLIPSegForImageSegmentation.from_pretrained(clipseg_dir).eval()
    maps = []
    with torch.no_grad():
        for template in TEMPLATES:  # one at a time
            tokens = tiny_tokenizer()([template.format("cat")], return_tensors="pt")
            maps.append(model(pixel_values=image, **tokens).logits.reshape(32, 32).sigmoid())
    mean = torch.stack(maps).mean(0)
    expected = Image.fromarray((mean / mean.max() * 255).round().to(torch.uint8).numpy()).resize((16, 16), 2)
    assert np.abs(levels(filled.masks[0]) - levels(expected)).max() < 0.01


def test_it_is_trained_with_as_any_mask(clipseg, concept, base):
    bare = replace(concept, masks=(None,) * 3, mask_sources=(None,) * 3)
    masks = subject_masks(base, segmented(bare, clipseg))
    assert [mask.source for mask in masks] == ["clipseg"] * 3 and masks[0].image.size == (base.size_px,) * 2


def test_a_mask_has_the_shape_of_its_picture(clipseg, concept):
    wide = Image.new("RGB", (50, 20), "red")
    filled = segmented(replace(concept, images=(wide,) * 3, masks=(None,) * 3, mask_sources=(None,) * 3), clipseg)
    masks = [mask for mask in filled.masks if mask]
    assert len(masks) == 3 and {mask.size for mask in masks} == {(50, 20)} and {mask.mode for mask in masks} == {"L"}


class Sure:
    """Stands for a CLIPSeg whose logits are known: at the first place by the row's number, elsewhere -1."""

    device = "cpu"

    def __init__(self, first):
        self.first = first

    def __call__(self, pixel_values, **tokens):
        logits = torch.full((len(pixel_values), 16, 16), -1.0)
        logits[:, 0, 0] = torch.tensor([self.first(row) for row in range(len(pixel_values))])
        return type("Output", (), {"logits": logits})


def sure(first, prepare: Any = lambda pixels: pixels):
    return Segmenter(Sure(first), tiny_tokenizer(), prepare)


def test_probabilities_are_averaged_and_their_maximum_is_white(concept):
    bare = replace(concept, masks=(None, *concept.masks[1:]), mask_sources=(None, "given", "given"))
    mask = levels(segmented(bare, sure(lambda row: 6.0 if row % 2 else -6.0)).masks[0])
    assert mask[0, 0] == 1
    elsewhere = torch.sigmoid(torch.tensor(-1.0)) / (5 / len(TEMPLATES))  # five of the eleven see it at the first place
    assert mask[5, 5] == pytest.approx(float(elsewhere), abs=0.01)


def test_who_finds_nothing_says_so(concept):
    bare = replace(concept, masks=(None, *concept.masks[1:]), mask_sources=(None, "given", "given"))
    blind = replace(sure(lambda row: 0.0), prepare=lambda pixels: pixels, model=lambda **given: Nothing)
    assert segmented(bare, sure(lambda row: 0.0)).warnings == ()
    blind.model.device = "cpu"
    assert segmented(bare, blind).warnings == ("CLIPSeg hardly finds a cat in 1.png: look at its mask.",)


class Nothing:
    logits = torch.full((len(TEMPLATES), 4, 4), -9.0)


def test_what_is_no_clipseg_is_refused_in_a_sentence(clipseg_dir, tmp_path):
    shutil.copytree(clipseg_dir, tmp_path / "clip")
    config = (clipseg_dir / "config.json").read_text()
    (tmp_path / "clip" / "config.json").write_text(config.replace('"model_type": "clipseg"', '"model_type": "clip"'))
    for wrong in (tmp_path / "clip", tmp_path / "absent"):
        with pytest.raises(UserError, match="No CLIPSeg could be loaded from"):
            load_segmenter(wrong)


def test_nothing_is_downloaded_that_was_not_named(monkeypatch):
    asked = []

    def from_pretrained(name, **options):
        asked.append((name, options["local_files_only"]))
        raise OSError("not there")

    monkeypatch.setattr(segmenter.AutoConfig, "from_pretrained", from_pretrained)
    for name in (None, "some/clipseg"):
        with pytest.raises(UserError, match="not there"):
            load_segmenter(name)
    assert asked == [("CIDAS/clipseg-rd64-refined", True), ("some/clipseg", False)]
