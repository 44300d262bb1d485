"""The trigger of a kohya LoRA, told from its folders' names and its captions' tags.

sd-scripts #1441, bmaltais/kohya_ss #890 and #440, sd-scripts #1854: where images have caption files, the folder's
name is not used in training.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from field_models import TO_V, kohya_pair, saved

from infusion.foreign import inspect


def trigger_told(folder: Path, **metadata: Any) -> str | None:
    layer = kohya_pair("lora_unet_" + TO_V.replace(".", "_"), 8, 8)
    told = {key: json.dumps(value) for key, value in metadata.items()}
    return inspect(saved(folder / "lora.safetensors", layer, told)).trigger


def test_folder_name_is_the_trigger_without_captions(tmp_path: Path) -> None:
    assert trigger_told(tmp_path, ss_tag_frequency={"10_sks cat": {"sks cat": 20}}) == "sks cat"


@pytest.mark.xfail(strict=True, reason="no trigger is told where the captions' tags lack the folder's words")
def test_folder_name_that_no_caption_holds_is_not_told(tmp_path: Path) -> None:
    tags = {"10_sks cat": {"ohwx woman": 20, "solo": 19}}
    assert trigger_told(tmp_path, ss_tag_frequency=tags) != "sks cat"


@pytest.mark.xfail(strict=True, reason="a folder's one word is told only where it is a tag as well")
def test_folder_of_one_word_that_is_no_tag_is_not_told(tmp_path: Path) -> None:
    tags = {"10_girl": {"mika": 20, "1girl": 20, "halo": 18}}
    assert trigger_told(tmp_path, ss_tag_frequency=tags) != "girl"


@pytest.mark.xfail(strict=True, reason="folders listed in ss_reg_dataset_dirs do not count as subjects")
def test_regularization_pictures_do_not_hide_the_trigger(tmp_path: Path) -> None:
    tags = {"10_sks cat": {"sks cat": 20}, "1_cat": {"cat": 200}}
    regularization = {"1_cat": {"n_repeats": 1}}
    assert trigger_told(tmp_path, ss_tag_frequency=tags, ss_reg_dataset_dirs=regularization) == "sks cat"
