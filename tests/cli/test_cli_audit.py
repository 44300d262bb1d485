"""`infusion audit`: files as people have them, and mistakes in one sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from infusion.base import load_base
from infusion.cli.audit_given import page_of
from infusion.concepts.concept import Concept
from infusion.evaluation import plans as evaluation_defaults
from infusion.methods.adapter_file import save_adapter
from infusion.methods.infusion import Infusion
from infusion.methods.lora import LoRA
from infusion.sharing.repository import write_repository
from infusion.toybox.concepts import concept_images, write_concept
from infusion.training import stopping

ELSEWHERE = ("--clip", "toybox-b", "--encoder", "toybox-b", "--device", "cpu")


@pytest.fixture
def tiny_plan(monkeypatch):
    """As little drawn as can be measured."""
    whole = evaluation_defaults.plan_for

    def shrunk(*given, **named):
        plan = whole(*given, **named)
        drawing = replace(plan.drawing, num_class_pictures=3, num_inference_steps=1, num_timesteps=1)
        prompts = plan.prompts[:2]
        return replace(plan, prompts=prompts, unrelated=plan.unrelated[:2], siblings=plan.siblings[:2], drawing=drawing)

    monkeypatch.setattr(evaluation_defaults, "plan_for", shrunk)


@pytest.fixture
def tiny_file(base, adapter, tmp_path) -> Path:
    save_adapter(adapter, tmp_path / "my-cat.safetensors", base, {"max_train_steps": 3})
    return tmp_path / "my-cat.safetensors"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[Path, Path]:
    """An adapter of the embedded base, of a concept that nothing was learnt of, and its images."""
    folder = tmp_path_factory.mktemp("toy")
    images, masks = concept_images(3, 3, class_noun="cat")
    given = (None,) * 3
    concept = Concept("my-cat", "cat", tuple(images), tuple(masks), given, ("1", "2", "3"), (), ("given",) * 3)
    base = load_base(device="cpu")
    save_adapter(Infusion().adapter(base, concept), folder / "my-cat.safetensors", base)
    write_concept(3, folder / "train", 3, class_noun="cat")
    return folder / "my-cat.safetensors", folder / "train"


@pytest.mark.slow
def test_an_adapter_on_the_hub_is_measured_and_its_card_tells_it(run, toy, tiny_plan, stand_in):
    stand_in.add("user/my-cat", {"adapter.safetensors": toy[0].read_bytes()})
    code, _, error = run("audit", "user/my-cat", "--seeds", 1, "--device", "cpu")
    assert code == 0 and not error
    found = Path("user-my-cat-audit.json")
    card = write_repository(toy[0], "user/my-cat", Path("repository"), evaluation=found)[0].read_text()
    value = json.loads(found.read_text())["audits"][0]["measures"]["text_alignment"]["value"]
    assert f"type: text_alignment\n      value: {value}\n" in card and "- Are prompts followed? **" in card


@pytest.mark.slow
def test_an_adapter_of_the_embedded_base_is_measured_by_its_judges(run, toy, tiny_plan):
    file, pictures = toy
    code, told, error = run("audit", file, "--images", pictures, "--seeds", 1, "-o", "page.html", "--device", "cpu")
    assert code == 0 and not error
    assert "Was it learnt?" in told and "Drawing 21/21" in told and "page.json: all figures" in told
    found = json.loads(Path("page.json").read_text())["audits"][0]
    assert found["witnesses"] == {"clip": "toybox-b", "encoder": "toybox-b", "judges": "b"}
    assert {"identity", "facts_background", "copied", "class_leak"} <= found["measures"].keys()
    assert found["measures"]["w2_exact"]["null"] > 0 and found["num_pictures"] == 3
    assert "Real image 3" in Path("page.html").read_text()


@pytest.mark.slow
def test_an_adapter_of_another_base_is_measured_without_judges(run, tiny_file, tiny_plan):
    Path("prompts.txt").write_text("a {} te\na {} do\n")
    words = ("audit", tiny_file, "--prompts", "prompts.txt", "--quick", "--json", "all.json", *ELSEWHERE)
    code, told, _ = run(*words)
    assert code == 0 and "2 prompts × 2 images" in told and "This takes real images" in told
    found = json.loads(Path("all.json").read_text())["audits"][0]
    assert found["witnesses"]["judges"] is None and not {"facts", "identity"} & found["measures"].keys()
    assert [one["text"] for one in found["plan"]["prompts"]] == ["a {} te", "a {} do"]
    assert found["measures"]["lfd_s1"]["value"] < 1e-9 < found["measures"]["lfd_s4"]["value"]
    assert Path("my-cat-audit.html").exists()


def test_everything_that_is_wrong_is_told_at_once(run):
    Path("empty").mkdir()
    Path("prompts.txt").write_text("a cat\n")
    Path("file").write_text("")
    code, _, error = run(
        *("audit", "none.safetensors", "--images", "empty", "--prompts", "prompts.txt", "-o", "file/page.html")
    )
    assert code == 1 and "4 mistakes in this command" in error and "Traceback" not in error
    for told in ("There is no", "empty has no images", "must have {} once", "a part of that path"):
        assert told in error


def test_pictures_have_to_be_of_the_class_and_several(run, tiny_file):
    Path("one").mkdir()
    Image.new("RGB", (16, 16)).save("one/1.png")
    assert "one has one image" in run("audit", tiny_file, "--images", "one")[2]
    Image.new("RGB", (16, 16), "red").save("one/2.png")
    Path("one/2.txt").write_text("a photo of a dog")
    error = run("audit", tiny_file, "--images", "one")[2]
    assert 'The images in one are not of the class "cat". 2.png: ' in error


def test_files_that_are_no_adapters_are_refused(run, tmp_path, adapter, base):
    weight = next(adapter.parameters()).detach()
    save_file({"a": weight.clone(), "b.weight": weight.clone()}, tmp_path / "other.safetensors")
    assert "of nothing that is known here" in run("audit", "other.safetensors")[2]
    Path("text.safetensors").write_text("no")
    assert "text.safetensors" in run("audit", "text.safetensors")[2]


def test_another_base_is_refused(run, tiny_file, toy, base_dir):
    error = run("audit", toy[0], "--base", base_dir, *ELSEWHERE)[2]
    assert 'was trained on the base "toybox", but the base loaded is' in error
    assert "There is no device" in run("audit", tiny_file, "--device", "quantum")[2]


def test_judges_cannot_see_other_classes(run, tiny_file, adapter, base, tmp_path):
    adapter.class_noun = "kat"
    save_adapter(adapter, tmp_path / "kat.safetensors", base)
    error = run("audit", "kat.safetensors", "--base", "toybox")[2]
    assert 'class noun is "kat"' in error and 'Did you mean "cat"?' in error


@pytest.mark.parametrize("seeds", ["0", "1001", "many"])
def test_absurd_numbers_of_seeds_are_refused(run, seeds):
    code, _, error = run("audit", "my-cat.safetensors", "--seeds", seeds)
    assert code == 2 and "--seeds" in error and "Traceback" not in error


def test_the_figures_do_not_overwrite_the_page(run, tiny_file):
    assert "cannot both be x.json" in run("audit", tiny_file, "-o", "x.json")[2]


# files of other tools


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> Path:
    """A LoRA of the embedded base, as diffusers writes them, that changes what is drawn."""
    folder = tmp_path_factory.mktemp("lora")
    base = load_base(device="cpu")
    adapter = LoRA(rank=2).adapter(base, Concept("my-cat", "cat", (), (), (), (), ()))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    save_file({name: tensor.contiguous() for name, tensor in adapter.state_dict().items()}, folder / "lora.safetensors")
    return folder / "lora.safetensors"


TOY = ("--base", "toybox", "--class-noun", "cat", "--trigger", "sks cat", "--seeds", 1, "--device", "cpu")


@pytest.mark.slow
def test_a_lora_of_another_tool_is_measured_and_breaks_its_limits(run, lora, toy, tiny_plan):
    words = ("audit", lora, *TOY, "--images", toy[1], "-o", "page.html")
    code, told, error = run(*words, "--fail-above", "world=0.0001", "--fail-below", "learnt=5")
    assert code == 3 and "Drawing 21/21" in told
    assert "lora: world is " in error and "lora: learnt is " in error and "below the limit of 5" in error
    found = json.loads(Path("page.json").read_text())["audits"][0]
    assert found["adapter"]["method"] == "LoRA" and found["adapter"]["settings"]["rank"].startswith("2 (")
    assert found["verdict"]["world"]["value"] > 0.0001 and found["measures"]["lfd_s1"]["value"] > 1e-6
    page = Path("page.html").read_text()
    assert "a sks cat on the beach" in page and "Nearest to a training image" in page
    code, told, error = run(*words, "--fail-above", "world=1e9")
    assert code == 0 and not error and "0 images to draw" in told, "what was drawn is kept"


@pytest.mark.slow
def test_at_no_strength_it_is_the_base(run, lora, toy, tiny_plan):
    code, *_ = run("audit", lora, *TOY, "--trigger", "cat", "--images", toy[1], "--scale", 0, "-o", "page.html")
    found = json.loads(Path("page.json").read_text())["audits"][0]
    assert code == 0
    for name, figure in found["measures"].items():
        assert name == "recalled" or figure["value"] == pytest.approx(figure["base"], abs=1e-6), name


@pytest.mark.slow
def test_several_stand_side_by_side(run, lora, toy, tiny_plan):
    code, told, _ = run("audit", lora, toy[0], *TOY, "--images", toy[1])
    assert code == 0 and "Drawing 29/29" in told
    page = Path("audit.html").read_text()
    assert "Side by side" in page and 'href="audit-1.html">lora<' in page and 'href="audit-2.html">my-cat<' in page
    assert Path("audit-2.html").exists() and page.count("data:image/svg") >= 2
    assert [one["adapter"]["name"] for one in json.loads(Path("audit.json").read_text())["audits"]] == [
        "lora",
        "my-cat",
    ]


@pytest.mark.slow
def test_of_a_run_one_checkpoint_is_kept(run, lora, toy, tiny_plan, monkeypatch):
    for step in (50, 100):
        folder = Path("run") / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        shutil.copy(lora, folder / "pytorch_lora_weights.safetensors")
    assert "give --images FOLDER" in run("audit", "run", *TOY)[2]
    monkeypatch.setattr(stopping, "PROMPTS", stopping.PROMPTS[:1])
    look, looked = stopping.SelfCheck.__call__, []

    def until_interrupted(self, concept, step, *more):
        looked.append(step)
        if looked == [50, 100]:
            raise KeyboardInterrupt
        return look(self, concept, step, *more)

    monkeypatch.setattr(stopping.SelfCheck, "__call__", until_interrupted)
    code, told, _ = run("audit", "run", *TOY, "--images", toy[1])
    assert code == 130 and "the same command goes on" in told
    code, told, _ = run("audit", "run", *TOY, "--images", toy[1])
    assert looked == [50, 100, 100], "what was seen of a checkpoint is kept"
    assert code == 0 and "The checkpoint to keep: step " in told
    checks = json.loads(Path("run-audit.json").read_text())["checkpoints"]
    assert [check["step"] for check in checks] == [50, 100] and sum(check["kept"] for check in checks) == 1
    assert "Keep step " in Path("run-audit.html").read_text()
    assert "audited by itself" in run("audit", "run", lora, *TOY, "--images", toy[1])[2]


@pytest.mark.slow
def test_infusion_is_trained_once_and_stands_beside_and_no_limit_is_its(run, lora, toy, tiny_plan, monkeypatch):
    adapter, quick = Infusion.adapter, Infusion(max_train_steps=1, masked_loss=False)
    monkeypatch.setattr(Infusion, "adapter", lambda self, base, concept: adapter(quick, base, concept))
    assert "To train Infusion" in run("audit", lora, *TOY, "--beside-infusion")[2]
    words = ("audit", lora, *TOY, "--images", toy[1], "--beside-infusion", "--fail-above", "world=0.0001")
    code, told, error = run(*words)
    assert code == 3 and "Training Infusion 1/1" in told and "lora: world" in error and "infusion: world" not in error
    found = json.loads(Path("audit.json" if Path("audit.json").exists() else "lora-audit.json").read_text())
    assert [one["adapter"]["name"] for one in found["audits"]] == ["lora", "infusion"]
    assert "Training Infusion" not in run(*words)[1], "it is there already"


def test_thepage_of_a_name_lies_here(toy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v1.5").mkdir()
    assert page_of([Path("user/my-cat@main")]) == Path("user-my-cat-main-audit.html")
    assert page_of([Path("user/my-cat/a.safetensors")]) == Path("user-my-cat-a-audit.html")
    assert page_of([toy[0]]) == Path("my-cat-audit.html") and page_of([toy[0], toy[0]]) == Path("audit.html")
    assert page_of([Path("v1.5")]) == Path("v1.5-audit.html") and page_of([Path()]).stem.startswith(tmp_path.name)


def test_what_a_file_does_not_say_is_asked_for(run, lora):
    error = run("audit", lora)[2]
    assert "give --class-noun" in error and "and --trigger" in error
    error = run("audit", lora, "--class-noun", "cat", "--trigger", "sks cat")[2]
    assert "Say what it was trained on: --base" in error
    error = run("audit", lora, *TOY, "--fail-above", "wrld=1")[2]
    assert 'no axis "wrld". Did you mean "world"?' in error
    assert "takes real images" in run("audit", lora, *TOY, "--fail-above", "copied=0.1")[2]
    assert "is no limit" in run("audit", lora, *TOY, "--fail-above", "world=much")[2]
