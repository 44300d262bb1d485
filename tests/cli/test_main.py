"""The command line: what is given is checked before anything is loaded, and files are whole or absent."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import typer
from conftest import Run, picture
from PIL import Image
from safetensors.torch import load_file

from infusion.cli import method_settings, train_one
from infusion.cli.generate import parse_seeds
from infusion.cli.main import app, main
from infusion.cli.method_settings import merged_settings
from infusion.errors import UserError
from infusion.methods import METHODS
from infusion.training import showcase, stopping


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "my_cat" / "masks").mkdir(parents=True)
    for name, color in (("1.png", "red"), ("2.png", "orange")):
        image, mask = picture(color, 40)
        image.save(tmp_path / "my_cat" / name)
        mask.save(tmp_path / "my_cat" / "masks" / name)
    return tmp_path / "my_cat"


@pytest.fixture
def taught(run: Run, pictures: Path, base_dir: Path) -> Path:
    code, _, error = run(*train(pictures, base_dir), "-o", "cat.safetensors")
    assert (code, error) == (0, "")
    return Path("cat.safetensors")


def train(pictures: Path, base: Path | str, steps: int = 4) -> list[object]:
    given = ["--name", "my-cat", "--class-noun", "cat", "--base", base, "--device", "cpu"]
    return ["train", pictures, *given, "--max-train-steps", steps]


# --- what is given ---


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("42", [42]),
        ("0..7", list(range(8))),
        ("3..3", [3]),
        ("1, 9,5", [1, 9, 5]),
        ("0..2,7,1", [0, 1, 2, 7]),
        ("0..9999", list(range(10_000))),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "1.5", "1,,2", "0..", "..3", "0..1..2", "0-7", "²", str(2**63), "0:7"])
def test_what_names_no_seeds(text: str) -> None:
    with pytest.raises(UserError, match=r"given as 42, 1,5,9 or 0\.\.7"):
        parse_seeds(text)


def test_seeds_backwards_and_too_many() -> None:
    with pytest.raises(UserError, match=r"write 0\.\.7"):
        parse_seeds("7..0")
    for text in ("0..10000", "0..9999,20000", "0..999999999999"):
        with pytest.raises(UserError, match="at most 10,000"):
            parse_seeds(text)


def test_a_flag_goes_before_set_and_that_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("a = 1\nb = 1\nlong_name = 1\n")
    merged = merged_settings({"a": "3", "c": None}, ["a=2", "b = 2", "long-name=2"], tmp_path / "run.toml")
    assert merged == {"a": "3", "b": "2", "long_name": "2"}


def test_every_setting_is_a_flag_without_a_default_of_its_own() -> None:
    fields = {
        "method",
        *(field.name for cls in method_settings._classes_with_flags() for field in dataclasses.fields(cls)),
    }
    params = {param.name: param for param in typer.main.get_command(app).commands["train"].params}  # type: ignore[attr-defined]
    assert fields <= set(params)
    assert {params[name].default for name in fields} == {None}


def test_help_tells_what_the_settings_tell(run: Run) -> None:
    code, text, _ = run("train", "--help")
    text = " ".join(text.split())
    assert code == 0
    for cls in method_settings._classes_with_flags():
        for field in dataclasses.fields(cls):
            assert " ".join(field.metadata["help"].rstrip(".").split()) in text.replace("- ", "-")
            assert re.search(rf"\[default: {field.default}[\];]", text)
    assert re.search(r"--layers VALUE [^\[]* Of infusion only. \[default: all\]", text)
    assert re.search(r"--learning-rate VALUE [^\[]* \[default: 0.01; other methods have their own\]", text)
    assert "Other methods have settings of their own" in text
    assert all(name in text.replace("- ", "-") for name in METHODS)


def test_asking_for_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from infusion.cli.main import app, main\n"
        "def commands(app):\n"
        "    yield from ([one.name or one.callback.__name__] for one in app.registered_commands)\n"
        "    for group in app.registered_groups:\n"
        "        yield from ([group.name, *words] for words in [[], *commands(group.typer_instance)])\n"
        "for words in [[], *commands(app)]:\n"
        "    sys.argv = ['infusion', *words, '--help']\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, words\n"
        "    heavy = {'torch', 'diffusers', 'transformers', 'huggingface_hub', 'numpy', 'PIL'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("infusion train", "infusion audit", "infusion toybox sheet"):
        assert f"Usage: {command} " in done.stdout


@pytest.mark.parametrize("words", [["trian"], ["train", "x", "--class-noun", "cat", "--sed", "1"], ["show"], []])
def test_unknown_words(run: Run, words: list[str]) -> None:
    assert run(*words)[0] == 2


# --- mistakes ---


def test_all_mistakes_at_once_and_nothing_is_loaded(run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_one, "load_base_on", lambda *args: pytest.fail("something was loaded"))
    (pictures / "1.txt").write_text("a dog")
    given = ["--set", "learning_rat=1", "--max-train-steps", "0", "--mixed-precision", "fp61", "--page", "my_cat"]
    code, _, error = run("train", pictures, "--class-noun", "cat", *given, "-o", "x.pt")
    assert code == 1 and error.startswith("error: 5 mistakes in this command:")
    expected = [
        'Unknown setting "learning_rat". Did you mean "learning_rate"?',
        "max_train_steps = '0' is not allowed: it must be a whole number of at least 1",
        '1.png: The caption "a dog" holds neither',
        'mixed_precision = "fp61" is not one of no, fp16, bf16. Did you mean "fp16"?',
        "Cannot write my_cat: it is a folder",
    ]
    for sentence in expected:
        assert sentence in error
    (pictures / "1.txt").unlink()
    code, _, error = run("train", pictures, "--class-noun", "cat", "-o", "x.pt")
    assert code == 1 and error == "error: The adapter file x.pt must be called something.safetensors.\n"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["absent", "--class-noun", "cat"], "There is no folder absent"),
        (["my_cat"], "Nothing says what kind of thing the images in my_cat show."),
        (["my_cat", "--class-noun", "<cat>"], "angle brackets"),
        (["my_cat", "--class-noun", "cat", "--name", "[bold]x"], '"[bold]x" cannot be the name'),
        (["my_cat", "--class-noun", "cat", "--masks", "absent"], "absent is not a folder"),
        (["my_cat", "--class-noun", "cat", "--config", "absent.toml"], "Cannot read the settings in absent.toml"),
        (["my_cat", "--class-noun", "cat", "--config", "bad.toml"], "bad.toml is not a TOML file"),
        (["my_cat", "--class-noun", "cat", "--set", "seed"], '--set "seed" is not NAME=VALUE'),
        (["my_cat", "--class-noun", "cat", "-o", "bad.toml/x.safetensors"], "is a file, not a folder"),
        (["my_cat", "--class-noun", "cat", "--device", "gpu", "-o", "x.safetensors"], 'There is no device "gpu"'),
        (
            ["my_cat", "--class-noun", "cat", "--base", "absent/base"],
            'No base model could be loaded from "absent/base"',
        ),
    ],
)
def test_mistakes(run: Run, pictures: Path, given: list[str], words: str) -> None:
    Path("bad.toml").write_text("= 3")
    code, _, error = run("train", *given)
    assert code == 1 and error.startswith("error: ") and words in error and "Traceback" not in error
    assert list(Path().rglob("*.safetensors")) == []


def test_our_own_faults_keep_their_traceback(run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_one, "_read_concept", lambda *args: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["infusion", "train", str(pictures), "--class-noun", "cat"])
    with pytest.raises(ZeroDivisionError):
        main()


# --- train ---


def test_a_dry_run_prints_all_settings_and_writes_nothing(run: Run, pictures: Path) -> None:
    Path("run.toml").write_text("learning_rate = 0.5\ntrain_batch_size = 2\n")
    given = ["--config", "run.toml", "--set", "learning_rate=0.25", "--no-flip", "--dry-run"]
    code, text, _ = run("train", pictures, "--class-noun", "cat", *given)
    assert code == 0
    for line in ("learning_rate = 0.25", "train_batch_size = 2", "flip = false", 'output = "my_cat.safetensors"'):
        assert line in text.splitlines()
    assert sorted(path.name for path in Path().iterdir()) == ["my_cat", "run.toml"]


@pytest.mark.slow
def test_train_says_what_it_read_and_made(
    run: Run, pictures: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(showcase.compare, prompts=("a {}",), seeds=(0,), num_inference_steps=1)
    monkeypatch.setattr(showcase, "compare", few)
    given = ["--preview-steps", "3", "--train-batch-size", "2", "--page", "page.html"]
    code, text, _ = run(*train(pictures, base_dir), *given)
    assert code == 0
    made = Path("my-cat.safetensors")
    assert "<my-cat>: 2 images of one cat." in text
    assert re.search(r"Masks: 2 given; they cover \d\d% of the images", text)
    assert f"my-cat.safetensors: {made.stat().st_size:,} bytes, 176 parameters." in text
    assert "infusion generate 'a <my-cat> on the beach' --concept my-cat.safetensors --seed 0..7" in text
    assert sorted(path.name for path in Path("my-cat.previews").iterdir()) == ["step-000003.png"]
    assert Path("page.html").stat().st_size > 10_000
    there = {path.name for path in Path().iterdir()}
    assert there == {"my_cat", "my-cat.safetensors", "my-cat.previews", "page.html"}


@pytest.mark.slow
def test_stop_auto_keeps_a_step_by_its_own_pictures(
    run: Run, pictures: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "PROMPTS", ("a {} on the beach", "a sketch of a {}"))
    monkeypatch.setitem(stopping._SAMPLING, "num_inference_steps", 1)
    given = ["--stop", "auto", "--clip", "toybox-a", "--encoder", "toybox-a"]
    code, text, _ = run(*train(pictures, base_dir, steps=26), *given)
    assert code == 0
    assert (
        re.search(r"Step 25: learnt -?\d+%, prompt followed \d+%; best so far: step 25\.", text)
        and "Step 26: learnt" in text
    )
    (kept,) = re.findall(r"Kept: step (\d+) of 26", text)
    assert json.loads(run("show", "my-cat.safetensors", "--json")[1])["training"]["kept_step"] == int(kept)
    assert sorted(path.name for path in Path().iterdir()) == ["my-cat.safetensors", "my_cat"]

    def full(*given: object, **about: object) -> int:
        raise UserError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("infusion.methods.adapter_file.save_adapter", full)
        code, _, error = run(*train(pictures, base_dir, steps=26), *given)
    there = {"my-cat.checkpoint.safetensors", "my-cat.checkpoint.kept.safetensors", "my-cat.safetensors", "my_cat"}
    assert (code, error) == (1, "error: the disk is full\n") and {path.name for path in Path().iterdir()} == there
    before = load_file("my-cat.safetensors")
    code, _, error = run(*train(pictures, base_dir, steps=26), *given, "--encoder", "toybox-b")
    assert code == 1 and "found by other encoders" in error
    Path("my-cat.safetensors").unlink()
    code, text, _ = run(*train(pictures, base_dir, steps=26), *given)
    assert code == 0 and f"Kept: step {kept} of 26" in text
    assert all((tensor == before[name]).all() for name, tensor in load_file("my-cat.safetensors").items())
    assert sorted(path.name for path in Path().iterdir()) == ["my-cat.safetensors", "my_cat"]
    code, _, error = run(*train(pictures, base_dir), "--stop", "soon")
    assert code == 1 and 'stop = "soon" is not one of last, auto' in error


def test_a_damaged_picture_is_named(run: Run, pictures: Path, base_dir: Path) -> None:
    (pictures / "3.jpg").write_bytes(b"\xff\xd8\xff")
    code, _, error = run(*train(pictures, base_dir, steps=1))
    assert code == 0 and error.startswith("warning: 3.jpg is skipped")


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_learnt_and_the_same_command_goes_on(
    run: Run, pictures: Path, base_dir: Path, tmp_path: Path
) -> None:
    words = [str(word) for word in train(pictures, base_dir, steps=40)]
    command = [sys.executable, "-u", "-m", "infusion.cli", *words]
    # as many threads as in this process: sums differ in the last bit with their number
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=one_thread, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Learning"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "kept in my-cat.checkpoint.safetensors; the same command goes on from there" in rest
    assert Path("my-cat.checkpoint.safetensors").exists() and not Path("my-cat.safetensors").exists()

    code, text, _ = run(*words)
    assert code == 0 and "Going on from my-cat.checkpoint.safetensors" in text
    assert not Path("my-cat.checkpoint.safetensors").exists()
    resumed = load_file("my-cat.safetensors")
    assert run(*words, "--no-resume")[0] == 0
    whole = load_file("my-cat.safetensors")
    assert all((resumed[name] == whole[name]).all() for name in whole)


def test_starting_anew_needs_to_be_said(run: Run, pictures: Path, base_dir: Path) -> None:
    run(*train(pictures, base_dir, steps=2), "-o", "a.safetensors")
    shutil.copy("a.safetensors", "b.checkpoint.safetensors")
    Path("b.checkpoint.kept.safetensors").write_text("damaged")
    code, _, error = run(*train(pictures, base_dir, steps=2), "-o", "b.safetensors")
    assert code == 1 and "b.checkpoint.safetensors" in error and not Path("b.safetensors").exists()
    code, _, _ = run(*train(pictures, base_dir, steps=2), "-o", "b.safetensors", "--no-resume")
    assert code == 0 and {path.name for path in Path().iterdir()} == {"my_cat", "a.safetensors", "b.safetensors"}


def test_masks_that_are_not_used_are_told(
    run: Run, pictures: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infusion.concepts.masks.subject_masks", lambda *given: pytest.fail("masks were made"))
    given = ["--method", "textual-inversion", "--masks", pictures / "masks"]
    code, text, error = run(*train(pictures, base_dir, steps=1), *given)
    assert code == 0 and "learnt whole, without masks" in text and "cover" not in text
    assert error == "warning: --masks is not used: textual-inversion needs --masked-loss to learn by masks.\n"
    assert run(*train(pictures, base_dir), *given, "--masked-loss", "--dry-run")[2] == ""


@pytest.mark.slow
def test_pictures_without_masks_in_their_own_shape(run: Run, pictures: Path, base_dir: Path, clipseg_dir: Path) -> None:
    shutil.rmtree(pictures / "masks")
    picture("red", 40)[0].resize((80, 40)).save(pictures / "3.png")
    code, text, error = run(*train(pictures, base_dir, 2), "--segmenter", clipseg_dir, "--crop", "buckets")
    assert (code, error) == (0, "") and "Masks: 3 by CLIPSeg; they cover" in text
    assert json.loads(run("show", "my-cat.safetensors", "--json")[1])["training"]["crop"] == "buckets"
    code, text, _ = run(*train(pictures, base_dir, 2), "--segmenter", "attention")
    assert code == 0 and "Masks: 3 from the base model's attention" in text
    code, _, error = run(*train(pictures, base_dir, 2), "--segmenter", "absent/clipseg")
    assert code == 1 and 'No CLIPSeg could be loaded from "absent/clipseg"' in error
    code, _, error = run(*train(pictures, base_dir, 2), "--crop", "bucket")
    assert code == 1 and 'crop = "bucket" is not one of square, buckets. Did you mean "buckets"?' in error


@pytest.mark.slow
def test_a_segmenter_that_is_there_is_used_and_never_on_the_toybox(
    run: Run, pictures: Path, base_dir: Path, clipseg_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(pictures / "masks")
    monkeypatch.setattr("infusion.concepts.segmenter.CLIPSEG", str(clipseg_dir))
    assert "Masks: 2 by CLIPSeg" in run(*train(pictures, base_dir, 1))[1]
    assert "attention" in run(*train(pictures, "toybox", 1), "--no-resume")[1]
    monkeypatch.setattr("infusion.concepts.segmenter.CLIPSEG", str(pictures / "absent"))
    assert "attention" in run(*train(pictures, base_dir, 1), "--no-resume")[1]


def test_another_method_has_its_own_settings(run: Run, pictures: Path) -> None:
    Path("run.toml").write_text('method = "lora"\nrank = 8\n')
    words = ["train", pictures, "--class-noun", "cat", "--dry-run"]
    code, text, _ = run(*words, "--config", "run.toml", "--learning-rate", "0.5")
    assert code == 0
    assert {'method = "lora"', "rank = 8", "learning_rate = 0.5", 'rare_token = "sks"'} <= set(text.splitlines())
    code, text, _ = run(*words, "--config", "run.toml", "--method", "dreambooth", "--set", "rank=8")
    assert code == 1
    code, text, _ = run(*words, "--method", "dreambooth", "--no-masked-loss")
    assert code == 0 and {"learning_rate = 5e-06", "masked_loss = false"} <= set(text.splitlines())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--method", "lara"], 'method = "lara" is not one of infusion, '),
        (["--method", "lara"], 'Did you mean "lora"?'),
        (["--method", "lora", "--layers", "up"], 'Unknown setting "layers".'),
        (["--method", "lora", "--set", "rnk=8"], 'Unknown setting "rnk". Did you mean "rank"?'),
        (["--set", "rank=8"], 'Unknown setting "rank".'),
    ],
)
def test_settings_of_another_method_are_refused(run: Run, pictures: Path, given: list[str], words: str) -> None:
    code, _, error = run("train", pictures, "--class-noun", "cat", *given)
    assert code == 1 and words in error


@pytest.mark.parametrize(
    ("method", "given", "says"),
    [
        ("lora", ["--set", "rank=2"], 'pipe.load_lora_weights("my-cat.safetensors"); a prompt then says "sks cat".'),
        (
            "textual-inversion",
            ["--preview-steps", 1],
            'pipe.load_textual_inversion("my-cat.safetensors"); a prompt then says "<my-cat>".',
        ),
        ("custom-diffusion", ["--set", "num_class_images=2"], "Drawing 2 images of the class, so that it is kept"),
        ("perfusion", ["--page", "page.html"], "my-cat.safetensors: "),
    ],
)
def test_rivals_from_pictures_to_pictures(
    run: Run, pictures: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str, given: list, says: str
) -> None:
    few = partial(showcase.compare, prompts=("a {}",), seeds=(0,), num_inference_steps=1)
    monkeypatch.setattr(showcase, "compare", few)
    code, text, error = run(*train(pictures, base_dir, steps=2), "--method", method, *given)
    assert (code, error) == (0, "") and says in text
    assert ("In diffusers" in text) == (method in ("lora", "textual-inversion"))
    learnt = re.search(r"bytes, ([\d,]+) parameters", text)
    if method == "perfusion":
        assert "Attention maps stay" not in Path("page.html").read_text()

    few_steps = ["--concept", "my-cat.safetensors", "--num-inference-steps", 2, "--device", "cpu"]
    code, text, error = run("generate", "a <my-cat>", "a cat", *few_steps)
    assert (code, error) == (0, "") and "2 images in out." in text
    code, text, error = run("show", "my-cat.safetensors")
    assert (code, error) == (0, "") and f"method      {method} (arXiv" in text
    assert learnt and f"{learnt[1]} parameters" in text


# --- generate ---


def test_generate_writes_a_picture_for_every_prompt_and_seed(run: Run, taught: Path, base_dir: Path) -> None:
    prompts = ["a <my-cat> on the beach", "a cat"]
    given = ["--concept", taught, "--seed", "0..1", "--num-inference-steps", "2", "--negative-prompt", "Hündin"]
    code, text, error = run("generate", *prompts, *given, "-o", "pics", "--device", "cpu")
    assert (code, error) == (0, "") and "4 images in pics." in text
    names = {f"{slug}-{seed}.png" for slug in ("a-my-cat-on-the-beach", "a-cat") for seed in (0, 1)}
    assert {path.name for path in Path("pics").iterdir()} == names | {"grid.png"}
    with Image.open("pics/a-my-cat-on-the-beach-1.png") as image:
        text_of = image.text  # type: ignore[attr-defined]
        settings = json.loads(text_of["settings"])
        assert (text_of["prompt"], text_of["seed"]) == (prompts[0], "1")
    assert settings["num_inference_steps"] == 2 and settings["negative_prompt"] == "Hündin"
    assert settings["base"] == str(base_dir) and settings["concepts"] == ["<my-cat>"]
    assert "guidance_scale" in settings


def test_one_picture_needs_no_grid_and_like_prompts_get_names_of_their_own(run: Run, base_dir: Path) -> None:
    few = ["--base", base_dir, "--num-inference-steps", "1", "--device", "cpu"]
    assert run("generate", "猫", *few, "-o", "one")[0] == 0
    assert [path.name for path in Path("one").iterdir()] == ["picture-0.png"]
    assert run("generate", "a cat", "a cat!", *few, "-o", "two")[0] == 0
    assert {path.name for path in Path("two").iterdir()} == {"1-a-cat-0.png", "2-a-cat-0.png", "grid.png"}


def test_a_picture_does_not_depend_on_its_batch_mates(run: Run, taught: Path) -> None:
    few = ["a <my-cat>", "--concept", taught, "--num-inference-steps", "1", "--device", "cpu"]
    run("generate", *few, "--seed", "0..2", "-o", "all")
    run("generate", *few, "--seed", "2", "-o", "alone")
    alone, together = (Image.open(f"{folder}/a-my-cat-2.png").tobytes() for folder in ("alone", "all"))
    assert max(abs(a - b) for a, b in zip(alone, together, strict=True)) <= 1


def test_generate_refuses_all_mistakes_at_once(run: Run, taught: Path) -> None:
    Path("foreign.safetensors").write_bytes(b"no tensors")
    code, _, error = run("generate", "a <my-kat>", "--concept", taught, "--seed", "7..0")
    assert code == 1 and "2 mistakes" in error
    assert "names <my-kat>" in error and 'Did you mean "my-cat"?' in error and "run backwards" in error
    for file in ("foreign.safetensors", "absent.safetensors"):
        code, _, error = run("generate", "a <my-cat>", "--concept", file)
        assert code == 1 and file in error and "Traceback" not in error
    code, _, error = run("generate", "a <my-cat>", "--concept", taught, "--concept", taught)
    assert code == 1 and "second concept called <my-cat>" in error
    code, _, error = run("generate", "a cat", "--concept", taught)
    assert code == 1 and "No prompt names <my-cat>" in error
    code, _, error = run("generate", "a cat", "-o", taught)
    assert code == 1 and "Cannot write" in error


# --- show ---


def test_show(run: Run, taught: Path, base_dir: Path) -> None:
    code, text, error = run("show", taught)
    assert (code, error) == (0, "")
    for part in ("<my-cat>", '"cat"', "infusion", str(base_dir), "176 parameters", f"{taught.stat().st_size:,} bytes"):
        assert part in text
    code, text, _ = run("show", taught, "--json")
    facts = json.loads(text)
    norms = {name: tensor.norm().item() for name, tensor in load_file(taught).items()}
    assert facts["norms"] == pytest.approx(norms, abs=1e-5) and len(norms) == 7
    assert (facts["num_parameters"], facts["bytes"]) == (176, taught.stat().st_size)
    assert facts["concept_name"] == "my-cat" and facts["settings"]["max_train_steps"] == 4


def test_show_refuses_what_is_no_adapter(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"12345678 nothing")
    code, text, error = run("show", "x.safetensors")
    assert (code, text) == (1, "") and error.startswith("error: x.safetensors")


# --- prepare ---


def test_prepare_shows_a_folder_and_writes_one_that_trains(run: Run, pictures: Path, base_dir: Path) -> None:
    (pictures / "1.txt").write_text("a cat on a mat")
    given = ["--base", base_dir, "--device", "cpu"]
    code, text, error = run("prepare", pictures, "--class-noun", "cat", *given)
    assert (code, error) == (0, "")
    assert sorted(path.name for path in Path().iterdir()) == ["my_cat", "my_cat-sheet.png"]
    assert re.search(r"1.png  16 x 16 px;  \d\d% learnt \(given\); a <my_cat> on a mat\n", text)
    with Image.open("my_cat-sheet.png") as sheet:
        assert sheet.width > 400
    code, text, _ = run("prepare", pictures, "--class-noun", "cat", "--name", "Mia", "-o", "tidy", *given)
    assert code == 0 and "infusion train tidy" in text
    code, text, error = run("train", "tidy", "--max-train-steps", 1, *given)
    assert (code, error) == (0, "") and "<Mia>: 2 images of one cat, 1 with captions." in text
    code, _, error = run("prepare", pictures, "--class-noun", "cat", "-o", "tidy", *given)
    assert code == 1 and "tidy is there already" in error


def test_prepare_reads_a_list_of_concepts(run: Run, pictures: Path, base_dir: Path, clipseg_dir: Path) -> None:
    shutil.copytree(pictures, "other")
    shutil.rmtree("other/masks")
    other = {"instance_prompt": "a <new1> dog", "class_prompt": "dog", "instance_data_dir": "other"}
    Path("list.json").write_text(json.dumps([{"class_prompt": "cat", "instance_data_dir": "my_cat"}, other]))
    given = ["--base", base_dir, "--device", "cpu", "--crop", "buckets", "--segmenter", clipseg_dir]
    code, text, _ = run("prepare", "list.json", "-o", "tidy", *given)
    assert code == 0 and "<new1>, a dog:" in text and "learnt (clipseg)" in text
    assert {path.name for path in Path("tidy/new1/masks").iterdir()} == {"01.png", "02.png"}
    assert Path("my_cat-sheet.png").exists() and Path("new1-sheet.png").exists()
    code, _, error = run("prepare", "list.json", "--class-noun", "cat", *given)
    assert code == 1 and "leave these options out" in error
    code, _, error = run("prepare", pictures, "--class-noun", "cat", "--crop", "round", *given[:4])
    assert code == 1 and 'crop = "round" is not one of' in error
