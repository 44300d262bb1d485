"""The card says what the file and the evaluation say, in a form that the Hub reads."""

import json
import math
import re

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from tiny_families import tiny

from infusion.base import Base
from infusion.errors import UserError
from infusion.methods import METHODS
from infusion.methods.adapter_file import save_adapter
from infusion.methods.infusion import Infusion
from infusion.sharing.card import Shown, card, describe, read_evaluation

BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MEASURES: dict[str, dict[str, float | None]] = {
    "identity": {"value": 0.62, "low": 0.51, "high": 0.7, "num": 24},
    "lfd_s1": {"value": 0.0, "low": 0.0, "high": 0.0, "num": 9},
    "facts_hat": {"value": 0.25, "low": None, "high": None, "num": 1},
    "collapse": {"value": None, "low": None, "high": None, "num": 0},
}


@pytest.fixture
def saved(base, adapter, tmp_path):
    """A file that says its base is on the Hub."""
    base.id = BASE
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base, {"seed": 7, "max_train_steps": 3, "kept": "a|b"})
    return tmp_path / "my-cat.safetensors"


def evaluation_of(path, **changes) -> dict:
    """What `infusion audit` writes, for one,, as far as a card reads it."""
    about = describe(path).about
    names = ("concept_name", "class_noun", "method", "settings", "training")
    of = {"file": path.name, "bytes": path.stat().st_size, **{name: about[name] for name in names}}
    return {
        "adapter": of | changes,
        "base": {"id": BASE},
        "num_pictures": 5,
        "plan": {"prompts": ["a {} on the beach"] * 6},
        "seeds": [0, 1],
        "witnesses": {"clip": "openai/clip-vit-base-patch32", "encoder": "/home/me/dino", "judges": None},
        "answers": [{"question": "Was it learnt?", "answer": "Yes", "sentence": "It stands at 0.62."}],
        "measures": MEASURES,
    }


@pytest.fixture
def evaluation(saved, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"audits": [evaluation_of(saved)]}))
    return read_evaluation(path, describe(saved))


def metadata(text: str) -> dict:
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


def test_metadata(saved):
    pictures = [Shown("pictures/01.png", "a <my-cat> on the beach", "3"), Shown("pictures/02.png")]
    told = metadata(card(describe(saved), "user/my-cat", pictures))
    assert told.pop("tags")[:3] == ["text-to-image", "diffusers", "infusion"]
    assert told == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": "<my-cat>",
        "widget": [{"text": "a <my-cat> on the beach", "output": {"url": "pictures/01.png"}}],
    }


def test_figures_are_those_of_the_evaluation(saved, evaluation):
    text = card(describe(saved), "user/my-cat", (), evaluation)
    (index,) = metadata(text)["model-index"]
    (result,) = index["results"]
    metrics = {metric["type"]: metric for metric in result["metrics"]}
    assert index["name"] == "my-cat" and result["task"] == {"type": "text-to-image"}
    assert set(metrics) == {"identity", "lfd_s1", "facts_hat"}  # what could not be measured has no figure
    assert {name: metric["value"] for name, metric in metrics.items()} == {
        name: row["value"] for name, row in MEASURES.items() if row["value"] is not None
    }
    assert metrics["identity"]["name"] == "identity ↑ (95% interval 0.51 to 0.7)"
    assert metrics["identity"]["args"] == {"low": 0.51, "high": 0.7, "num": 24}
    assert metrics["lfd_s1"]["name"] == "S1 unrelated ↓" and "args" not in metrics["facts_hat"]
    assert "6 prompts × 2 seeds and 5 real images" in text
    assert "| identity ↑ | 0.62 | 0.51 to 0.7 | 24 |" in text
    assert "- Was it learnt? **Yes.** It stands at 0.62." in text
    read = ModelCard(text).data
    assert isinstance(read, ModelCardData) and read.eval_results
    assert [result.metric_value for result in read.eval_results] == [0.62, 0.0, 0.25]
    assert not any(math.isnan(result.metric_value) for result in read.eval_results)


def test_the_text_tells_what_the_file_tells(saved):
    text = card(describe(saved), "user/my-cat", [Shown("pictures/01.png", "a <my-cat> | `x`", "3")])
    assert f"[{BASE}](https://huggingface.co/{BASE})" in text and "arXiv 2404.14007" in text
    assert "![01](pictures/01.png)<br>`a <my-cat> | 'x'`, seed `3`" in text
    assert all(f"- {note}" in text for note in Infusion().notes)
    assert "| training: seed | `7` |" in text and "| training: kept | `a\\|b` |" in text
    without_code = re.sub(r"```.*?```|`[^`]*`", "", text.split("---\n", 2)[2], flags=re.DOTALL)
    assert "<my-cat>" not in without_code  # it would be an HTML tag


def test_where_a_folder_lies_is_told_to_nobody(base, adapter, tmp_path):
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    described = describe(tmp_path / "my-cat.safetensors")
    whole = evaluation_of(tmp_path / "my-cat.safetensors") | {"base": {"id": base.id}}
    (tmp_path / "e.json").write_text(json.dumps({"audits": [whole]}))
    text = card(described, "user/my-cat", (), read_evaluation(tmp_path / "e.json", described))
    assert str(tmp_path.parent) not in text and "/home/me" not in text
    assert "base_model" not in metadata(text) and "`tiny`" in text
    assert 'load_base("folder-of-the-base")' in text and "--base folder-of-the-base" in text


@pytest.mark.parametrize("name", METHODS)
def test_a_card_of_every_method(base, concept, tmp_path, name):
    base.id = BASE
    adapter = METHODS[name]().adapter(base, concept)
    save_adapter(adapter, tmp_path / "a.safetensors", base)
    text = card(describe(tmp_path / "a.safetensors"), "user/my-cat")
    loader = adapter.method.diffusers_loader
    assert name in metadata(text)["tags"]
    assert (f'pipe.{loader}("user/my-cat", weight_name="adapter.safetensors")' in text) == (loader is not None)
    assert metadata(text)["instance_prompt"] == {"lora": "sks cat"}.get(name, "<my-cat>")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no evaluation"),
        ("[]", "is no evaluation"),
        ('{"audits": [{"adapter": {}}]}', "is no evaluation"),
        ({"measures": {"identity": {"value": "high", "low": 0, "high": 1, "num": 2}}}, "is no evaluation"),
        ({"measures": {"identity": 3}}, "is no evaluation"),
        ({"bytes": 1}, "of another adapter"),
        ({"training": {"seed": 8}}, "of another adapter"),
        ({"concept_name": "my-dog"}, "of another adapter"),
        (None, "Cannot read"),
    ],
)
def test_what_is_no_evaluation_of_this_adapter(saved, tmp_path, content, told):
    path = tmp_path / "e.json"
    if isinstance(content, dict):
        whole = evaluation_of(saved, **{key: value for key, value in content.items() if key != "measures"})
        whole |= {key: value for key, value in content.items() if key == "measures"}
        content = json.dumps({"audits": [whole]})
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=told):
        read_evaluation(path, describe(saved))


@pytest.mark.parametrize(("name", "tag"), [("sdxl", "stable-diffusion-xl"), ("sana", "sana"), ("flux", "flux")])
def test_models_are_tagged_by_their_family(name, tag, concept, tmp_path):
    base = Base.from_pipeline(tiny(name))
    save_adapter(Infusion().adapter(base, concept), tmp_path / "a.safetensors", base)
    told = metadata(card(describe(tmp_path / "a.safetensors"), "me/a"))["tags"]
    assert {tag, f"{tag}-diffusers"} <= set(told) and "stable-diffusion" not in told
