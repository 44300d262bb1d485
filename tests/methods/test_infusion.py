"""Infusion's own laws, on a tiny real Stable Diffusion."""

import tracemalloc
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel

from infusion.base import Base
from infusion.base.cross_attention import AttentionRecorder, cross_attentions
from infusion.base.families import StableDiffusion
from infusion.errors import UserError
from infusion.methods.infusion import Infusion

SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


def trained(base, concept, size=0.5, **settings):
    adapter = Infusion(**settings).adapter(base, concept)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=size)
    return adapter.eval()


def inputs(base, prompts, adapters=()):
    torch.manual_seed(2)
    latents = torch.randn(len(prompts), 4, 8, 8)
    conditioning = base.encode(prompts, {a.concept_name: a.class_noun for a in adapters})
    return latents, torch.full((len(prompts),), 400), conditioning


@torch.no_grad()
def predict(base, prompts, *adapters):
    with base.customized(*adapters) as denoiser:
        return denoiser.predict(*inputs(base, prompts, adapters))


def test_rows_without_the_concept_are_the_base_to_the_bit(base, concept):
    adapter = trained(base, concept)
    with torch.no_grad():
        expected = base.predict(*inputs(base, ["a cat", "a cat", "a dog", ""]))
    changed = predict(base, ["a cat", "a <my-cat>", "a dog", ""], adapter)
    assert torch.equal(changed[[0, 2, 3]], expected[[0, 2, 3]])
    assert (changed[1] - expected[1]).abs().max() > 1e-2


@torch.no_grad()
def attention_maps(base, prompt, *adapters):
    """The maps of every layer, as drawn last: those of the customized pass, where there is one."""
    with base.customized(*adapters) as denoiser, AttentionRecorder(base.network) as recorder:
        denoiser.predict(*inputs(base, [prompt], adapters))
        return {path: recorder.maps(path) for path in recorder.layers}


@pytest.mark.parametrize(("streams", "borrowed"), [("dual", True), ("single", False)])
def test_attention_maps_are_the_foundations_for_any_residual(base, concept, streams, borrowed):
    foundation = attention_maps(base, "a cat")
    customized = attention_maps(base, "a <my-cat>", trained(base, concept, size=5.0, streams=streams))
    largest = max((customized[path] - foundation[path]).abs().max() for path in foundation)
    assert (largest < 1e-5) == borrowed


def test_gradients_reach_every_value_residual_and_no_query(base, concept):
    """Keys have no residual at all; queries are the foundation's, so nothing flows back into the customized row's."""
    base.network.requires_grad_(True)
    adapter = Infusion().adapter(base, concept)
    with base.customized(adapter) as denoiser:
        denoiser.predict(*inputs(base, ["a <my-cat>"], [adapter])).square().mean().backward()
    layers = cross_attentions(base.network)
    assert set(adapter.state_dict()) == {f"{path}.to_v.value_residual" for path in layers}
    assert all(residual.grad is not None and residual.grad.any() for residual in adapter.residuals().values())
    assert all(layer.to_q.weight.grad is None for layer in layers.values())


def test_concepts_add_at_their_own_places(base, concept):
    one = trained(base, concept)
    other = trained(base, concept)
    other.concept_name, other.class_noun = "rex", "dog"
    both = predict(base, ["a <my-cat> and a <rex>"], one, other)
    first_alone = predict(base, ["a <my-cat> and a dog"], one)
    second_alone = predict(base, ["a cat and a <rex>"], other)
    assert not torch.allclose(both, first_alone, atol=1e-3)
    assert not torch.allclose(both, second_alone, atol=1e-3)
    for parameter in other.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(predict(base, ["a <my-cat> and a <rex>"], one, other), first_alone)


def test_two_rows_equal_each_row_alone(base, concept):
    adapter = trained(base, concept)
    together = predict(base, ["a <my-cat>", "the <my-cat> and a dog"], adapter)
    latents, timesteps, conditioning = inputs(base, ["a <my-cat>", "the <my-cat> and a dog"], [adapter])
    for row in (0, 1):
        with base.customized(adapter) as denoiser, torch.no_grad():
            alone = denoiser.predict(latents[[row]], timesteps[[row]], conditioning.rows([row]))
        torch.testing.assert_close(together[[row]], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layers", "count"), [("all", 12480), ("up_blocks.2.*,up_blocks.3.*", 2880), ("mid", 1280)])
def test_parameter_count_on_stable_diffusion_1_5(layers, count):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    assert (
        Infusion(layers=layers).num_parameters(
            Base("sd", StableDiffusion(768), SimpleNamespace(unet=unet), None), "cat"
        )
        == count
    )


def test_a_loaded_concept_takes_little_more_than_its_numbers(base, concept):
    """Objects beside the numbers (which torch allocates itself): at 3 kB each, Stable Diffusion 1.5's double."""
    method, num_concepts = Infusion(), 20
    tensors = method.adapter(base, concept).state_dict()
    restore = partial(method.restored, base, tensors, "my-cat", "cat")
    restore()
    tracemalloc.start()
    try:
        kept = [restore() for _ in range(num_concepts)]
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(kept) == num_concepts
    assert taken / num_concepts / len(tensors) < 1500


def test_fused_projections_are_refused(base, concept):
    adapter = Infusion().adapter(base, concept)
    base.network.fuse_qkv_projections()
    with pytest.raises(UserError, match="unfuse"), base.customized(adapter):
        pass


def test_notes_are_true_of_the_settings():
    assert all("maps stay the base model's" in Infusion(streams=streams).notes[0] for streams in ("dual", "mixed"))
    assert all("may leave" in method.notes[0] for method in (Infusion(streams="single"), Infusion(keys=True)))
    assert "one for the keys" in Infusion(keys=True).notes[0]


def test_layers_that_do_not_exist_are_refused(base, concept):
    with pytest.raises(UserError, match="matches none"):
        Infusion(layers="decoder.*").adapter(base, concept)
