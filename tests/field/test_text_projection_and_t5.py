"""LoRAs on a text model's projection, and on SD 3's T5, are laid on.

Nerogar/OneTrainer #314, #47, Comfy-Org/ComfyUI #3701: lora_te2_text_projection (XL), lora_te1_text_projection and
lora_te3_encoder_block_* (SD 3).
"""

from pathlib import Path

from field_models import changes, family_folder, kohya_pair, plain_weights, saved


def test_text_projection_of_xl_is_laid_on(tmp_path: Path) -> None:
    base, weight = family_folder("sdxl"), "text_encoder_2.text_projection.weight"
    lora = kohya_pair("lora_te2_text_projection", *plain_weights(base)[weight].shape)
    assert list(changes(saved(tmp_path / "lora.safetensors", lora), base)) == [weight]


def test_t5_and_text_projection_of_sd3_are_laid_on(tmp_path: Path) -> None:
    base = family_folder("sd-3")
    projection = "text_encoder.text_projection.weight"
    keys = "text_encoder_3.encoder.block.0.layer.0.SelfAttention.k.weight"
    lora = {
        **kohya_pair("lora_te1_text_projection", *plain_weights(base)[projection].shape),
        **kohya_pair("lora_te3_encoder_block_0_layer_0_SelfAttention_k", *plain_weights(base)[keys].shape),
    }
    assert set(changes(saved(tmp_path / "lora.safetensors", lora), base)) == {projection, keys}
