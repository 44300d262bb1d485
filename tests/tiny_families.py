"""A tiny pipeline of every family, with random weights, real in every part."""

from collections.abc import Callable
from typing import Any

import torch
from conftest import tiny_clip, tiny_pipeline, tiny_tokenizer, tiny_vae
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = ("a", "the", "cat", "dog", "photo", "of", "ted", "teddy", "bear", "dy", "next", "to", "and", "on")


def t5_tokenizer() -> T5Tokenizer:
    """Unigram pieces for a few words, and every letter."""
    letters = [chr(code) for code in range(32, 127)]
    pieces = [(f"▁{word}", -2.0) for word in WORDS] + [(word, -3.0) for word in WORDS if len(word) > 1]
    pieces += [(letter, -9.0) for letter in letters if letter not in {"a"}] + [("a", -9.0), ("▁", -4.0)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def t5(width: int = 16) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)


def gemma_tokenizer() -> GemmaTokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *(chr(code) for code in range(33, 127))]
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat"), ("d", "o"), ("do", "g"), ("▁", "dog")]
    vocab = {token: number for number, token in enumerate([*special, *pieces, *("".join(pair) for pair in merges)])}
    return GemmaTokenizer(vocab=vocab, merges=merges)  # type: ignore[arg-type]  # pairs are what it takes


def gemma() -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=len(gemma_tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=64,
    )
    return Gemma2Model(config)


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 24,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
        norm_num_groups=8,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    return StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_clip(),
        text_encoder_2=tiny_clip(24, projected=True),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def pixart(pipeline: type = PixArtSigmaPipeline) -> PixArtSigmaPipeline | PixArtAlphaPipeline:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=16,
        in_channels=4,
        out_channels=8,
    )
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return pipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(), vae=tiny_vae(), transformer=transformer, scheduler=scheduler
    )


def sana() -> SanaPipeline:
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
        timestep_scale=0.5,
    )
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return SanaPipeline(
        tokenizer=gemma_tokenizer(), text_encoder=gemma(), vae=autoencoder, transformer=transformer, scheduler=scheduler
    )


def stable_diffusion_3(with_t5: bool = True) -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(16, shift=0.06),
        text_encoder=tiny_clip(projected=True),
        text_encoder_2=tiny_clip(projected=True),
        text_encoder_3=t5(32) if with_t5 else None,
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )


def flux(guidance_embeds: bool = True) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=tiny_vae(channels=4, shift=0.06),
        text_encoder=tiny_clip(),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )
    pipeline.default_sample_size = 8
    return pipeline


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd-1": tiny_pipeline,
    "sdxl": stable_diffusion_xl,
    "pixart-sigma": pixart,
    "pixart-alpha": lambda: pixart(PixArtAlphaPipeline),
    "sana": sana,
    "sd-3": stable_diffusion_3,
    "sd-3-without-t5": lambda: stable_diffusion_3(with_t5=False),
    "flux": flux,
    "flux-schnell": lambda: flux(guidance_embeds=False),
}


def tiny(name: str):
    """The pipeline of that name; every one has its own random weights, the same each time."""
    torch.manual_seed(0)
    pipeline = PIPELINES[name]()
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipeline
