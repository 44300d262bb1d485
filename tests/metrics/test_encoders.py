import json

import pytest
import torch
from conftest import tiny_tokenizer
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
)

from infusion.errors import UserError
from infusion.metrics.encoders import TOYBOX_NAMES, load_clip, load_image_encoder
from infusion.toybox.render import render
from infusion.toybox.scene import concept_scene, individual


def processor_file(folder, kind, **values):
    common = {"image_processor_type": kind, "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(common | values))


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "clip"
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = sizes | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    statistics = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    processor_file(folder, "CLIPImageProcessor", size={"shortest_edge": 32}, **crop, **statistics)
    return folder


@pytest.fixture(scope="module")
def dino_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "dino"
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    crop = {"crop_size": {"height": 28, "width": 28}, "do_center_crop": True}
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor_file(folder, "BitImageProcessor", size={"shortest_edge": 32}, **crop, **statistics)
    return folder


def photo(height, width):
    """A smooth image, as bytes."""
    torch.manual_seed(height)
    coarse = torch.rand(1, 3, 5, 7)
    image = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (image * 255).round().to(torch.uint8)


def as_pil(image):
    return Image.fromarray(image[0].permute(1, 2, 0).numpy())


def test_a_clip_folder_loads(clip_dir):
    clip = load_clip(clip_dir)
    pictures, texts = clip.encode_images(torch.rand(3, 3, 40, 50)), clip.encode_texts(["a cat", "a dog", "a cat"])
    assert pictures.shape == texts.shape == (3, 12)
    torch.testing.assert_close(pictures.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts[0], texts[2])
    assert (texts[0] - texts[1]).abs().max() > 1e-3
    assert clip.encode_texts(["cat " * 100]).shape == (1, 12)


def test_an_encoder_sees_what_its_image_processor_makes(dino_dir):
    encoder = load_image_encoder(dino_dir)
    image = photo(45, 60)
    expected = AutoImageProcessor.from_pretrained(dino_dir)(as_pil(image), return_tensors="pt").pixel_values
    prepared = encoder.prepare(image.float() / 255)
    assert prepared.shape == expected.shape == (1, 3, 28, 28)
    assert (prepared - expected).abs().mean() < 0.02  # the other one rounds to bytes on the way
    model = Dinov2Model.from_pretrained(dino_dir).eval()
    with torch.no_grad():
        features = F.normalize(model(pixel_values=prepared).pooler_output, dim=1)
    torch.testing.assert_close(encoder.encode_images(image.float() / 255), features)


def test_texts_are_read_as_the_model_itself_reads_them(clip_dir):
    clip = load_clip(clip_dir)
    tokens = clip.tokenizer(["a dog", "teddy cat dog"], padding=True, return_tensors="pt")
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(clip_dir).eval()(**tokens, pixel_values=clip.prepare(pixels))
    torch.testing.assert_close(clip.encode_texts(["a dog", "teddy cat dog"]), expected.text_embeds)
    torch.testing.assert_close(clip.encode_images(pixels), expected.image_embeds)


def test_features_do_not_depend_on_the_company(dino_dir, clip_dir):
    images = torch.rand(40, 3, 30, 30)
    for encoder in (load_image_encoder(dino_dir), load_clip(clip_dir)):
        together = encoder.encode_images(images)
        torch.testing.assert_close(together[35:36], encoder.encode_images(images[35:36]), atol=1e-5, rtol=1e-4)


def test_what_is_no_encoder_is_refused_in_a_sentence(clip_dir, dino_dir, tmp_path):
    CLIPTextModel(CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1)).save_pretrained(tmp_path)
    wrong = [
        (load_clip, tmp_path / "nothing"),
        (load_clip, dino_dir),
        (load_image_encoder, tmp_path / "nothing"),
        (load_image_encoder, clip_dir),
        (load_image_encoder, tmp_path),
        (load_image_encoder, "toybox-c"),
    ]
    for load, name in wrong:
        with pytest.raises(UserError) as error:
            load(name)
        assert str(name) in str(error.value) and "toybox-a" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def two_poses():
    """[4, 3, 64, 64]: two fish, each in two poses and places."""
    fish = [individual(seed, "fish") for seed in (500_000, 500_016)]
    places = ("meadow", "brick wall")
    scenes = [concept_scene(who, n, places[n % 2]) for who in fish for n in range(2)]
    return render(scenes).images


@pytest.mark.parametrize("name", TOYBOX_NAMES)
def test_the_toybox_has_an_image_encoder(name, two_poses):
    encoder = load_image_encoder(name)
    likeness = (features := encoder.encode_images(two_poses)) @ features.T
    torch.testing.assert_close(likeness.diagonal(), torch.ones(4))
    assert likeness[0, 1] > likeness[0, 3] and likeness[2, 3] > likeness[2, 1]
    larger = encoder.encode_images(F.interpolate(two_poses, (96, 96), mode="bicubic"))
    assert (features * larger).sum(dim=1).min() > 0.9


@pytest.mark.parametrize("name", TOYBOX_NAMES)
def test_the_toybox_has_a_clip(name, two_poses):
    clip = load_clip(name)
    pictures = clip.encode_images(two_poses[:2])
    texts = clip.encode_texts(["a fish in a meadow", "a fish in front of a brick wall", "a car in the snow"])
    likeness = pictures @ texts.T
    assert likeness.argmax(dim=1).tolist() == [0, 1]


def test_the_two_sets_are_not_one(two_poses):
    a, b = (load_image_encoder(name).encode_images(two_poses) for name in TOYBOX_NAMES)
    assert not torch.allclose(a, b, atol=0.1)
