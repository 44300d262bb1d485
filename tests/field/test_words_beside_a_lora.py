"""A folder that holds a LoRA and word embeddings is read with both, or refused; never with the words left out.

huggingface/diffusers #8794, #5733, #5883 (pivotal tuning: LoRA and new words in two files); replicate's
lora.safetensors + embeddings.pti.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from field_models import TOYBOX_TEXT_WIDTH, laid_on, plain_base, random, saved, toybox_lora

from infusion import UserError


def of_pivotal_tuning(folder: Path) -> None:
    saved(folder / "pytorch_lora_weights.safetensors", toybox_lora())
    saved(folder / f"{folder.name}_emb.safetensors", {"clip_l": random(2, TOYBOX_TEXT_WIDTH)})
    card = "---\nbase_model: some/model\ninstance_prompt: a photo of <s0><s1> cat\n---\n"
    (folder / "README.md").write_text(card)


def of_textual_inversion(folder: Path) -> None:
    saved(folder / "pytorch_lora_weights.safetensors", toybox_lora())
    torch.save({"<sks>": random(TOYBOX_TEXT_WIDTH)}, folder / "learned_embeds.bin")


def of_replicate(folder: Path) -> None:
    saved(folder / "lora.safetensors", toybox_lora())
    torch.save({"text_encoders_0": random(2, TOYBOX_TEXT_WIDTH)}, folder / "embeddings.pti")


@pytest.mark.xfail(strict=True, reason="the words beside a LoRA are learnt with it, or the folder is refused")
@pytest.mark.parametrize("write", [of_pivotal_tuning, of_textual_inversion, of_replicate])
def test_words_beside_a_lora_are_read_or_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    try:
        base = laid_on(tmp_path)
    except UserError:
        return
    assert len(base.tokenizer) > len(plain_base().tokenizer)
