import torch
from torch.autograd.graph import saved_tensors_hooks

from infusion.base.frozen_convolutions import lean_convolutions
from infusion.methods.infusion import Infusion
from infusion.training.loop import train
from infusion.training.settings import TrainingSettings


def gradients(base, adapter):
    """And how many numbers were kept for them."""
    kept = []

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept.append(tensor.numel())
        return tensor

    torch.manual_seed(0)
    told = base.encode(["a <my-cat>"], {"my-cat": "cat"})
    adapter.zero_grad()
    with base.customized(adapter) as denoiser, saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = denoiser.predict(torch.randn(1, 4, 8, 8), torch.tensor(500), told).square().mean()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in adapter.parameters()]), sum(kept)


def test_gradients_are_the_same_bits_and_inputs_are_not_kept(base, adapter):
    expected, much = gradients(base, adapter)
    with lean_convolutions(base.network):
        found, little = gradients(base, adapter)
    assert torch.equal(found, expected)
    assert little < 0.9 * much


def test_convolutions_that_train_keep_what_they_need(base, adapter):
    weight = base.network.conv_out.weight.requires_grad_(True)
    gradients(base, adapter)
    expected, weight.grad = weight.grad, None
    with lean_convolutions(base.network):
        gradients(base, adapter)
    assert torch.equal(weight.grad, expected)


def test_no_trace(base, concept):
    training = train(base, Infusion(max_train_steps=1).adapter(base, concept), concept, TrainingSettings())
    next(training)
    assert not any("forward" in vars(module) for module in base.network.modules())
