"""Images become latents once, and only those that are asked for."""

import torch

from infusion.base.latents import LazyLatents, encode_images
from infusion.concepts.crop import cropped


def test_a_picture_is_encoded_when_it_is_first_asked_for(base, concept, monkeypatch):
    images = [cropped(image, base, "square") for image in concept.images]
    expected = encode_images(base, images).float()
    encode, calls = base.vae.encode, []

    def counted(picture):
        calls.append(1)
        return encode(picture)

    monkeypatch.setattr(base.vae, "encode", counted)
    latents = LazyLatents(base, images)
    assert len(latents) == len(images) and not calls
    assert torch.equal(latents[torch.tensor([1, 0, 1])], expected[[1, 0, 1]]) and len(calls) == 2
    assert torch.equal(latents[torch.tensor([0])], expected[:1]) and len(calls) == 2
