"""What diffusers' training scripts get in place of torchvision, and the recipe of the files they made."""

import hashlib
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import load_script
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILES_DIR = BENCHMARKS / "audit" / "files"


def load(name: str) -> ModuleType:
    return load_script(BENCHMARKS / "peers" / f"{name}.py")


@pytest.fixture(scope="module")
def transforms() -> ModuleType:
    return load("stand_in")


def gradient(width: int, height: int) -> Image.Image:
    """Pixel (x, y) is (x, y, 0)."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    return Image.fromarray(pixels)


def test_the_shorter_side_gets_the_size(transforms):
    assert transforms.Resize(32)(gradient(64, 128)).size == (32, 64)
    assert transforms.Resize(32)(gradient(96, 48)).size == (64, 32)
    assert transforms.Resize((10, 20))(gradient(64, 64)).size == (20, 10)


def test_crops(transforms):
    middle = transforms.CenterCrop(4)(gradient(8, 6))
    assert middle.size == (4, 4) and middle.getpixel((0, 0)) == (2, 1, 0)
    torch.manual_seed(0)
    corners = {transforms.RandomCrop(4)(gradient(6, 5)).getpixel((0, 0)) for _ in range(100)}
    assert corners == {(x, y, 0) for x in range(3) for y in range(2)}
    with pytest.raises(ValueError, match="cannot be cropped"):
        transforms.CenterCrop(9)(gradient(8, 8))


def test_mirrors_by_chance(transforms):
    picture = gradient(4, 4)
    assert transforms.RandomHorizontalFlip(1)(picture).getpixel((0, 0)) == (3, 0, 0)
    assert transforms.RandomHorizontalFlip(0)(picture) is picture


def test_pixels_become_what_models_read(transforms):
    steps = [transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    found = transforms.Compose(steps)(Image.new("RGB", (3, 2), (0, 255, 51)))
    assert found.shape == (3, 2, 3)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_scripts_find_it_as_torchvision(transforms, monkeypatch):
    for name in ("torchvision", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, None)
    transforms.install()
    from torchvision import transforms as found

    # how train_dreambooth_lora.py lists its choices
    modes = {f.lower() for f in dir(found.InterpolationMode) if not f.startswith("__") and not f.endswith("__")}
    assert {"bilinear", "bicubic", "lanczos"} <= modes


def test_the_files_are_those_that_were_recorded():
    made = json.loads((FILES_DIR / "made.json").read_text())
    recorded = {name: about for run in made.values() for name, about in run["files"].items()}
    there = {file.name for file in FILES_DIR.glob("*.safetensors")}
    assert there and there <= recorded.keys()
    for name in there:
        content = (FILES_DIR / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == recorded[name]["sha256"], name


def test_the_recipe_names_every_file_once():
    recipe = tomllib.loads((BENCHMARKS / "peers" / "recipe.toml").read_text())
    names = [name for run in recipe["runs"].values() for name in (*run["keep"], *run.get("kohya", {}))]
    assert len(set(names)) == len(names)
    for run in recipe["runs"].values():
        assert set(run.get("kohya", {}).values()) <= run["keep"].keys()
