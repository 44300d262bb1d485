"""An adapter on a pipeline that torchao quantized acts, or one sentence says that it cannot.

huggingface/diffusers #10621, #11752, #9514: adapters on pipelines quantized by torchao.
"""

from pathlib import Path
from typing import Any

import pytest
from field_models import acting_adapter, drawn, refusal
from tiny_families import tiny

from infusion import customize, save_adapter
from infusion.base import Base

quantization = pytest.importorskip("torchao.quantization")

SIZES = {"sd-1": {}, "sana": {"height": 64, "width": 64, "use_resolution_binning": False}}


def quantize(pipeline: Any) -> None:
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    quantization.quantize_(denoiser, quantization.Int8WeightOnlyConfig())


@pytest.mark.parametrize("family", SIZES)
def test_quantized_pipeline_draws_by_itself(family: str) -> None:
    pipeline = tiny(family)
    quantize(pipeline)
    assert drawn(pipeline, ["a cat"], **SIZES[family]).size


@pytest.mark.xfail(strict=True, reason="a quantized base is recognised, or refused in one sentence")
@pytest.mark.parametrize("family", SIZES)
def test_file_is_put_on_a_quantized_pipeline_or_refused(family: str, tmp_path: Path) -> None:
    pipeline = tiny(family)
    file = tmp_path / "adapter.safetensors"
    save_adapter(acting_adapter(pipeline), file, Base.from_pipeline(pipeline))
    quantize(pipeline)
    refusal(lambda: customize(pipeline, file))


@pytest.mark.xfail(strict=True, reason="a concept acts on quantized layers, or is refused in one sentence")
@pytest.mark.parametrize("family", SIZES)
def test_quantized_pipeline_draws_the_concept_or_refuses(family: str) -> None:
    pipeline = tiny(family)
    adapter = acting_adapter(pipeline)
    quantize(pipeline)
    refusal(lambda: drawn(customize(pipeline, adapter), ["a <my-cat>"], **SIZES[family]))
