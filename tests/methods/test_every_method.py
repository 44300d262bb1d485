"""The laws, for every method in the registry, on a tiny real Stable Diffusion."""

import subprocess
import sys

import pytest
import torch

from infusion.base import load_base
from infusion.base.denoising import denoising_loss
from infusion.concepts.masks import subject_masks
from infusion.methods import METHODS
from infusion.methods.adapter_file import save_adapter
from infusion.training.dataset import step_generator, training_set
from infusion.training.loop import train
from infusion.training.settings import TrainingSettings

# The tiny base learns fast. DreamBooth moves every weight, and wants less.
LEARNING_RATES = {"dreambooth": 1e-3}
NUM_STEPS = 12

every_method = pytest.mark.parametrize("method", [pytest.param(method, id=name) for name, method in METHODS.items()])


def prompts_of(base, adapter):
    return base.encode(["a photo of a <my-cat>"], {adapter.concept_name: adapter.words})


def noisy(batch_size=1):
    return torch.randn(batch_size, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(400)


@torch.no_grad()
def predict(base, adapter):
    with base.customized(adapter) as denoiser:
        return denoiser.predict(*noisy(), prompts_of(base, adapter))


def trained(base, concept, method, steps, seed=0, checkpoint_path=None, stop_after=None):
    """Class images are noise: prior preservation costs the same with them, and no law asks what they show."""
    adapter = method(max_train_steps=steps, learning_rate=LEARNING_RATES.get(method.name, 0.02)).adapter(base, concept)
    class_latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    settings = TrainingSettings(seed=seed, train_batch_size=2)
    training = train(base, adapter, concept, settings, checkpoint_path, class_latents=class_latents)
    for progress in training:
        if progress.step == stop_after:
            training.close()
    return adapter


@every_method
def test_fresh_is_silent(base, concept, method):
    with torch.no_grad():
        expected = base.predict(*noisy(), base.encode([f"a photo of a {method().words('cat')}"]))
    assert torch.equal(predict(base, method().adapter(base, concept)), expected)


@every_method
def test_only_its_own_has_gradients(base, concept, method):
    adapter = trained(base, concept, method, steps=1)  # fresh, some have factors that are 0
    with base.customized(adapter) as denoiser:
        denoiser.predict(*noisy(), prompts_of(base, adapter)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())
    for part in (base.network, base.text_encoder, base.vae):
        assert all(p.grad is None for p in part.parameters())


@every_method
def test_no_trace_is_left(base, base_dir, concept, method):
    def state(base):
        modules = [*base.network.modules(), *base.text_encoder.modules()]
        return (
            sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules),
            [type(m) for m in modules],
            "forward" in vars(base.network),
            len(base.tokenizer),
            dict(base.text_encoder.config.to_dict()),
        )

    before = state(base)
    trained(base, concept, method, steps=2)
    assert state(base) == before
    untouched = load_base(base_dir, device="cpu")
    for part in ("network", "text_encoder", "vae"):
        expected = getattr(untouched, part).state_dict()
        for name, weight in getattr(base, part).state_dict().items():
            assert torch.equal(weight, expected[name]), name


@every_method
def test_what_trains_elsewhere_still_trains(base, concept, method):
    base.network.requires_grad_(True)
    predict(base, method().adapter(base, concept))
    assert all(p.requires_grad for p in base.network.parameters())


@every_method
def test_between_steps_it_draws_as_it_will_in_the_end(base, concept, method):
    adapter = method(max_train_steps=2, learning_rate=1e-3).adapter(base, concept)
    latents = torch.zeros(1, 4, 8, 8)
    assert [adapter.training for _ in train(base, adapter, concept, class_latents=latents)] == [False, False]


ANOTHER_PROCESS = """
import sys, torch
torch.set_num_threads(1)
from infusion import load_adapter, load_base
base_dir, *files = sys.argv[1:]
base = load_base(base_dir, device="cpu")
latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
for file in files:
    adapter = load_adapter(file, base)
    conditioning = base.encode(["a photo of a <my-cat>"], {adapter.concept_name: adapter.words})
    with base.customized(adapter) as denoiser, torch.no_grad():
        torch.save(denoiser.predict(latents, torch.tensor(400), conditioning), f"{file}.pt")
"""


@pytest.mark.slow
def test_the_file_is_all(base, base_dir, concept, tmp_path):
    """Every method's; one other process reads them all."""
    expected = {}
    for name, method in METHODS.items():
        adapter = trained(base, concept, method, steps=2)
        file = tmp_path / f"{name}.safetensors"
        assert save_adapter(adapter, file, base) == file.stat().st_size
        expected[file] = predict(base, adapter)
    subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, base_dir, *expected], check=True, capture_output=True)
    for file, prediction in expected.items():
        assert torch.equal(torch.load(f"{file}.pt"), prediction), file.stem


@every_method
@pytest.mark.slow
def test_it_learns_and_the_seed_decides(base, concept, method):
    data = training_set(base, concept, subject_masks(base, concept), True, method().words("cat"))

    @torch.no_grad()
    def held_out_loss(adapter):
        with base.customized(adapter) as denoiser:
            batch = data.batch(64, step_generator(99, 0))
            return float(denoising_loss(base, denoiser, batch, method().masked_loss))

    first, again, other = (trained(base, concept, method, NUM_STEPS, seed=seed) for seed in (0, 0, 1))
    assert held_out_loss(first) < held_out_loss(method().adapter(base, concept))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    for name, parameter in first.named_parameters():
        assert not torch.equal(parameter, other.get_parameter(name))


@every_method
def test_an_interrupted_training_ends_as_an_uninterrupted_one(base, concept, method, tmp_path):
    checkpoint = tmp_path / "run.checkpoint.safetensors"
    expected = trained(base, concept, method, steps=3)
    trained(base, concept, method, steps=3, checkpoint_path=checkpoint, stop_after=2)
    resumed = trained(base, concept, method, steps=3, checkpoint_path=checkpoint)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert not trained(base, concept, method, steps=3, checkpoint_path=checkpoint).training, "nothing is left to train"


@every_method
def test_honest_size(base, concept, method):
    adapter = method().adapter(base, concept)
    assert adapter.num_parameters == method().num_parameters(base, "cat") > 0
