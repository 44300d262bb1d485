"""W + alpha / rank * up @ down for each layer, in whatever precision and with whatever alpha it is saved.

huggingface/diffusers #10512 (fp8 LoRAs), Comfy-Org/ComfyUI #1144, #2961: fp8 tensors, alpha as a bf16 scalar, as an
integer, or none, a rank of its own for each layer, text encoder too.
"""

from pathlib import Path

import torch
from field_models import TO_V, changes, factors, plain_weights, saved

TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
Q_PROJ = "encoder.layers.0.self_attn.q_proj"


def test_every_layer_has_its_own_precision_rank_and_alpha(tmp_path: Path) -> None:
    plain = plain_weights()
    queries = next(name for name in plain if name.startswith("text_encoder.") and name.endswith(f"{Q_PROJ}.weight"))
    layers = [
        (f"unet.{TO_V}.weight", f"lora_unet_{TO_V}", 4, torch.tensor(1.0, dtype=torch.bfloat16), torch.float8_e4m3fn),
        (f"unet.{TO_Q}.weight", f"lora_unet_{TO_Q}", 2, torch.tensor(1), torch.float16),
        (queries, f"lora_te_text_model_{Q_PROJ}", 3, None, torch.bfloat16),
    ]
    tensors: dict[str, torch.Tensor] = {}
    right: dict[str, torch.Tensor] = {}
    for path, name, rank, alpha, dtype in layers:
        down, up = (factor.to(dtype) for factor in factors(plain[path], rank))
        name = name.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = alpha
        right[path] = up.float() @ down.float() * (1 if alpha is None else float(alpha) / rank)
    torch.testing.assert_close(dict(changes(saved(tmp_path / "lora.safetensors", tensors))), right, atol=1e-6, rtol=0)
