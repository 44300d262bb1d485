"""The six laws, for every method in the registry, on a tiny real Stable Diffusion."""

import subprocess
import sys

import pytest
import torch

from infusion.adapter_file import save_adapter
from infusion.base import load_base
from infusion.dataset import step_generator, training_set
from infusion.masks import subject_masks
from infusion.methods import METHODS
from infusion.training import TrainingSettings, denoising_loss, train

# The tiny base learns fast; class pictures are few, because prior preservation is no law.
SETTINGS = {"dreambooth": {"learning_rate": 1e-3, "num_class_images": 2}, "custom-diffusion": {"num_class_images": 2}}

pytestmark = pytest.mark.parametrize("method", [pytest.param(method, id=name) for name, method in METHODS.items()])


def prompts_of(base, adapter):
    return base.encode(["a photo of a <my-cat>"], {adapter.concept_name: adapter.words})


def noisy(batch_size=1):
    return torch.randn(batch_size, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(400)


@torch.no_grad()
def predict(base, adapter):
    with base.customized(adapter) as denoiser:
        return denoiser.predict(*noisy(), prompts_of(base, adapter))


def trained(base, concept, method, steps, seed=0):
    settings = {"learning_rate": 0.02} | SETTINGS.get(method.name, {})
    adapter = method(max_train_steps=steps, **settings).adapter(base, concept)
    for _ in train(base, adapter, concept, TrainingSettings(seed=seed)):
        pass
    return adapter


def test_fresh_is_silent(base, concept, method):
    with torch.no_grad():
        expected = base.predict(*noisy(), base.encode([f"a photo of a {method().words('cat')}"]))
    assert torch.equal(predict(base, method().adapter(base, concept)), expected)


def test_only_its_own_has_gradients(base, concept, method):
    adapter = trained(base, concept, method, steps=1)  # fresh, some have factors that are 0
    with base.customized(adapter) as denoiser:
        denoiser.predict(*noisy(), prompts_of(base, adapter)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())
    for part in (base.unet, base.text_encoder, base.vae):
        assert all(p.grad is None for p in part.parameters())


def test_no_trace_is_left(base, base_dir, concept, method):
    def state(base):
        modules = [*base.unet.modules(), *base.text_encoder.modules()]
        return (
            sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules),
            [type(m) for m in modules],
            "forward" in vars(base.unet),
            len(base.tokenizer),
            dict(base.text_encoder.config.to_dict()),
        )

    before = state(base)
    trained(base, concept, method, steps=2)
    assert state(base) == before
    untouched = load_base(base_dir, device="cpu")
    for part in ("unet", "text_encoder", "vae"):
        expected = getattr(untouched, part).state_dict()
        for name, weight in getattr(base, part).state_dict().items():
            assert torch.equal(weight, expected[name]), name


def test_the_file_is_all(base, base_dir, concept, method, tmp_path):
    adapter = trained(base, concept, method, steps=3)
    size = save_adapter(adapter, tmp_path / "my-cat.safetensors", base)
    assert (tmp_path / "my-cat.safetensors").stat().st_size == size
    program = f"""
import torch; torch.set_num_threads(1)
from infusion import load_base, load_adapter
base = load_base({str(base_dir)!r}, device="cpu")
adapter = load_adapter({str(tmp_path / "my-cat.safetensors")!r}, base)
latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
conditioning = base.encode(["a photo of a <my-cat>"], {{adapter.concept_name: adapter.words}})
with base.customized(adapter) as denoiser, torch.no_grad():
    torch.save(denoiser.predict(latents, torch.tensor(400), conditioning), {str(tmp_path / "there.pt")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert torch.equal(predict(base, adapter), torch.load(tmp_path / "there.pt"))


def test_it_learns_and_the_seed_decides(base, concept, method):
    data = training_set(base, concept, subject_masks(base, concept), True, method().words("cat"))

    @torch.no_grad()
    def held_out_loss(adapter):
        with base.customized(adapter) as denoiser:
            batch = data.batch(64, step_generator(99, 0))
            return float(denoising_loss(base, denoiser, batch, method().masked_loss))

    first, again, other = (trained(base, concept, method, steps=20, seed=seed) for seed in (0, 0, 1))
    assert held_out_loss(first) < held_out_loss(method().adapter(base, concept))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    for name, parameter in first.named_parameters():
        assert not torch.equal(parameter, other.get_parameter(name))


def test_honest_size(base, concept, method):
    adapter = method().adapter(base, concept)
    assert adapter.num_parameters == method().num_parameters(base, "cat") > 0
