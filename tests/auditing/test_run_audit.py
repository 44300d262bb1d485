"""Customizations as they are given: how they are named, when they are drawn anew, and what a run's steps are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_evaluate import PLAN, evaluators  # noqa: F401 (a fixture)

from infusion.auditing import run
from infusion.auditing.answers import answers
from infusion.auditing.record import to_json
from infusion.auditing.run import Audit, by_step
from infusion.auditing.target import given, opened
from infusion.errors import UserError
from infusion.foreign import is_run
from infusion.methods.adapter_file import save_adapter


def lora(path: Path, layer: str = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v") -> Path:
    """A small LoRA, of one layer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    down, up = torch.ones(2, 32), torch.zeros(64, 2)
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, path)
    return path


def test_words_are_those_of_the_file_the_person_or_the_kind(tmp_path):
    file = lora(tmp_path / "a.safetensors")
    one = given(file, "cat", "sks cat")
    assert (one.name, one.words, one.class_noun, one.is_ours) == ("a", "sks cat", "cat", False)
    assert one.about["strength"] == 1.0 and one.about["settings"]["rank"] == "2 (1 layers)"
    with pytest.raises(UserError, match=r"give --class-noun.* and --trigger"):
        given(file)
    with pytest.raises(UserError, match=r"give --trigger"):
        given(file, "cat")
    vectors = tmp_path / "my-cat.safetensors"
    save_file({"<my-cat>": torch.zeros(3, 8)}, vectors)
    assert given(vectors, "cat", "sks cat").words == "<my-cat>", "whose vectors these are"
    with pytest.raises(UserError, match=r"its --scale can be 1 or 0"):
        given(vectors, "cat", scale=0.5)


def test_custom_diffusions_word_stands_before_the_noun(tmp_path):
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_v_custom_diffusion.weight"
    save_file({layer: torch.zeros(64, 32)}, tmp_path / "pytorch_custom_diffusion_weights.safetensors")
    save_file({"<my-cat>": torch.zeros(1, 8)}, tmp_path / "<my-cat>.safetensors")
    assert given(tmp_path, "cat").words == "<my-cat> cat"
    assert given(tmp_path, "cat", "<my-cat> cat").words == "<my-cat> cat"


def test_what_was_drawn_counts_only_for_the_same_files_words_and_strength(tmp_path):
    file = lora(tmp_path / "a.safetensors")

    def key(noun: str = "cat", words: str = "sks cat", scale: float = 1.0) -> str:
        return given(file, noun, words, scale).key

    assert key() == key()
    keys = [key(), key(noun="dog"), key(words="cat"), key(scale=0.5)]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    keys.append(key())
    lora(file, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v")
    keys.append(key())
    assert len(set(keys)) == 6


@pytest.mark.slow
def test_everything_is_drawn_once_and_a_noun_never_becomes_a_path(base, adapter, tmp_path, evaluators):  # noqa: F811
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    shared = Audit(base, "../../p cat", PLAN, evaluators, {"judges": None}, (), tmp_path / "work")
    one = given(tmp_path / "my-cat.safetensors")
    drawn: list[int] = []
    shared.reference.report = drawn.append
    expected = shared.num_to_draw([one])
    found = shared.of(one, opened(one, base))
    assert sum(drawn) == expected == 3 * 6 + 2 * 4 + 7 and shared.num_to_draw([one]) == 0
    assert {path.parent.parent for path in tmp_path.rglob("*.safetensors")} == {tmp_path / "work", tmp_path.parent}
    shared.of(one, opened(one, base))
    assert sum(drawn) == expected, "nothing is drawn again"
    assert json.loads(to_json([found]))["audits"][0]["adapter"]["strength"] == 1.0


def test_an_adapter_of_ours_acts_with_its_strength(base, adapter, tmp_path):
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.fill_(0.5)
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    conditioning = base.encode(["a <my-cat>"], {"my-cat": "cat"})
    noisy, at = torch.randn(1, *base.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor(500)

    def predicted(scale: float) -> torch.Tensor:
        model = opened(given(tmp_path / "my-cat.safetensors", scale=scale), base)
        with torch.no_grad(), base.customized(model.concept) as denoiser:
            return denoiser.predict(noisy, at, conditioning)

    with torch.no_grad():
        plain = base.predict(noisy, at, conditioning)
    assert torch.equal(predicted(0.0), plain)
    assert 0 < (predicted(0.5) - plain).norm() < (predicted(1.0) - plain).norm()


def test_a_folder_with_an_adapter_of_ours_is_that_adapter(base, adapter, tmp_path):
    save_adapter(adapter, tmp_path / "there" / "adapter.safetensors", base)
    one = given(tmp_path / "there")
    assert one.is_ours and one.name == "there" and opened(one, base).num_parameters == adapter.num_parameters


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("checkpoint-500", "checkpoint-1000"), [500, 1000]),
        (("checkpoint-500", "checkpoint-1000", "pytorch_lora_weights.safetensors"), [500, 1000, 1500]),
        (("run-000002.safetensors", "run-000004.safetensors", "run.safetensors"), [2, 4, 6]),
    ],
)
def test_the_final_file_of_a_run_stands_last(tmp_path, names, steps):
    from infusion.foreign import checkpoints

    for name in names:
        lora(tmp_path / (name if "." in name else f"{name}/pytorch_lora_weights.safetensors"))
    assert is_run(tmp_path)
    run = [given(found, "cat", "sks cat") for found in checkpoints(tmp_path)]
    assert list(by_step(run)) == steps
    assert list(by_step(run).values()) == run


def test_what_is_no_run(tmp_path):
    lora(tmp_path / "one" / "pytorch_lora_weights.safetensors")
    shards = tmp_path / "unet"
    for n in (1, 2):
        lora(shards / f"diffusion_pytorch_model-0000{n}-of-00002.safetensors")
        (tmp_path / "one" / f"image_000{n}.png").touch()
    assert not is_run(tmp_path / "one") and not is_run(shards) and not is_run(tmp_path / "one.safetensors")


def test_numbered_folders_of_a_training_that_can_be_resumed_are_not_its_checkpoints(tmp_path):
    from infusion.foreign import checkpoints

    for step in (100, 200, 900):
        save_file({"<my-cat>": torch.zeros(1, 8)}, tmp_path / f"learned_embeds-steps-{step}.safetensors")
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file(
            {"a.weight": torch.zeros(2), "b.weight": torch.zeros(2)}, tmp_path / f"checkpoint-{step}/model.safetensors"
        )
    assert is_run(tmp_path) and [found.step for found in checkpoints(tmp_path)] == [100, 200, 900]


def test_a_model_of_another_shape_is_refused_before_anything_is_drawn(base, base_dir, tmp_path):
    from infusion.base import load_base

    one = given(base_dir, "cat", "sks cat")
    with pytest.raises(UserError, match="give the base it was made from"):
        opened(one, load_base(device="cpu"))
    same = opened(one, base)
    assert same.base is not None and same.base.latent_shape == base.latent_shape


@pytest.mark.slow
def test_from_python_a_file_is_audited_without_leaving_any(base, adapter, tmp_path, evaluators, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run, "find_evaluators", lambda names, device: evaluators)
    monkeypatch.setattr(run, "plan_for", lambda noun, toybox, quick: PLAN)
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    before = set(tmp_path.rglob("*"))
    found = run.audit(base, tmp_path / "my-cat.safetensors", quick=True)
    assert found.name == "my-cat" and found.class_noun == "cat" and found.figure("lfd_s4") is not None
    assert len(answers(found)) == 6 and not found.training and set(tmp_path.rglob("*")) == before
    run.audit(base, tmp_path / "my-cat.safetensors", quick=True, work_dir=tmp_path / "work")
    assert (tmp_path / "work").exists()


def test_the_toyboxs_judges_know_its_own_classes():
    with pytest.raises(UserError, match='Did you mean "rabbit"'):
        run.check_class_noun("toybox", "rabit")
    run.check_class_noun("elsewhere", "rabit")
