"""Images <-> latents."""

from collections.abc import Sequence

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from torch import Tensor

from infusion.base import Base


def square(image: Image.Image, size_px: int) -> Image.Image:
    """The middle square of an image, `size_px` a side."""
    return ImageOps.fit(image, (size_px, size_px), Image.Resampling.LANCZOS)


@torch.no_grad()
def encode_images(base: Base, images: Sequence[Image.Image]) -> Tensor:
    """Images of one size -> latents [B, C, H, W], scaled as the denoiser expects them (the posterior's mode)."""
    pixels = VaeImageProcessor(do_resize=False).preprocess(list(images)).to(base.device, base.vae.dtype)
    encoded = [base.vae.encode(image[None]) for image in pixels]
    latents = [found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent for found in encoded]
    return (torch.cat(latents) - _shift(base)) * base.vae.config.scaling_factor


class LazyLatents:
    """Images of one size -> their latents [M, C, H, W] in fp32; each is encoded when it is first asked for."""

    def __init__(self, base: Base, images: Sequence[Image.Image]) -> None:
        self._base = base
        self._images = images
        self._encoded: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Those of rows [B]: [B, C, H, W]."""
        for row in rows.tolist():
            if row not in self._encoded:
                self._encoded[row] = encode_images(self._base, [self._images[row]])[0].float()
        return torch.stack([self._encoded[row] for row in rows.tolist()])


@torch.no_grad()
def decode_latents(base: Base, latents: Tensor) -> list[Image.Image]:
    """Latents [B, C, H, W] -> images."""
    scaled = latents.to(base.device, base.vae.dtype) / base.vae.config.scaling_factor + _shift(base)
    pixels = base.vae.decode(scaled, return_dict=False)[0]
    return VaeImageProcessor().postprocess(pixels.float(), output_type="pil")


def _shift(base: Base) -> float:
    """The mean that some autoencoders' latents have."""
    return base.vae.config.get("shift_factor") or 0.0
