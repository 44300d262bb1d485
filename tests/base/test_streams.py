"""The two streams against the law written out: explicit maps, both streams in one batch, in double precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_families import PIPELINES, tiny

from infusion.base import Base, rank_form
from infusion.errors import UserError
from infusion.generation.pipeline import sample_prompts
from infusion.methods.infusion import Infusion

CROSS = ("sd-1", "sdxl", "pixart-sigma", "sana")
PROMPTS = ["a <my-cat>", "the <my-cat> and a <rex>", "a dog", "a <rex> next to a <rex>"]
NAMED = [0, 1, 3]


class WrittenOut:
    """Attention of a batch whose first half is the foundation and whose second half is customized."""

    def __init__(self, residuals, tokens):
        self.residuals = residuals
        self.tokens = tokens

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None):
        num = len(hidden_states) // 2
        text = encoder_hidden_states[:num]
        values = attn.to_v(text)
        edit = torch.zeros_like(values)
        for row, tokens in enumerate(self.tokens):
            for concept, positions in tokens.items():
                for at in positions:
                    edit[row, at] += self.residuals[concept]

        def by_head(states):
            return states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        queries, keys = by_head(attn.to_q(hidden_states[:num])), by_head(attn.to_k(text))
        scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
        if attention_mask is not None:
            scores = scores + attention_mask[:num, None]
        maps = scores.softmax(-1)
        streams = [maps @ by_head(states) for states in (values, values + edit)]
        return attn.to_out[0](torch.cat(streams).transpose(1, 2).flatten(2))


def precise(name):
    base = Base.from_pipeline(tiny(name))
    base.freeze()
    base.network.double()
    return base


def two_adapters(base, concept, **settings):
    """Of a concept of one token in most tokenizers, and of one of several."""
    adapters = []
    for number, (name, noun) in enumerate([("my-cat", "cat"), ("rex", "teddy bear")]):
        adapter = Infusion(**settings).adapter(base, replace(concept, name=name, class_noun=noun)).double()
        torch.manual_seed(number)
        for parameter in adapter.parameters():
            parameter.data.normal_(std=0.5)
        adapters.append(adapter.eval())
    return adapters


def inputs(base, adapters, prompts=PROMPTS):
    words = {adapter.concept_name: adapter.words for adapter in adapters}
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(prompts), *base.latent_shape, generator=generator, dtype=torch.float64)
    return latents, torch.tensor([20, 400, 700, 950])[: len(prompts)], base.encode(prompts, words)


def predicted(base, adapters, *given):
    with base.customized(*adapters) as denoiser:
        return denoiser.predict(*given)


def written_out(base, adapters, latents, timesteps, told):
    before = {path: layer.attention.processor for path, layer in base.text_layers.items()}
    for path, layer in base.text_layers.items():
        residuals = {adapter.concept_name: adapter.residuals().get(path, 0) for adapter in adapters}
        layer.attention.processor = WrittenOut(residuals, told.concept_tokens)
    twice = list(range(len(told))) * 2
    prediction = base.predict(latents[twice], timesteps[twice], told.rows(twice))
    for path, layer in base.text_layers.items():
        layer.attention.processor = before[path]
    return prediction[len(told) :]


def with_values_of_their_own(base, adapters, latents, timesteps, told):
    """The plain network, whose values have the residuals added at the concepts' tokens; maps are as they come."""
    handles = []
    for path, layer in base.text_layers.items():

        def add(_module, _inputs, values, path=path):
            values = values.clone()
            for row, tokens in enumerate(told.concept_tokens):
                for adapter in adapters:
                    values[row, list(tokens.get(adapter.concept_name, ()))] += adapter.residuals()[path]
            return values

        handles.append(layer.attention.get_submodule(layer.values).register_forward_hook(add))
    prediction = base.predict(latents, timesteps, told)
    for handle in handles:
        handle.remove()
    return prediction


def gradients(adapters, prediction):
    """Of a loss that weighs every element differently, [P]."""
    weights = torch.linspace(0.5, 1.5, prediction[NAMED].numel(), dtype=torch.float64).reshape(prediction[NAMED].shape)
    parameters = [parameter for adapter in adapters for parameter in adapter.parameters()]
    found = torch.autograd.grad((weights * prediction[NAMED]).square().sum(), parameters)
    return torch.cat([gradient.flatten() for gradient in found])


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("layers", ["all", "*.1.*"])
@pytest.mark.parametrize("form", ["rank", "general"])
@pytest.mark.parametrize("name", CROSS)
@pytest.mark.slow
def test_streams_are_the_law_written_out(concept, name, form, layers, monkeypatch):
    if form == "general":
        monkeypatch.setattr(rank_form, "has_rank_form", lambda layer: False)
    base = precise(name)
    adapters = two_adapters(base, concept, layers=layers)
    given = inputs(base, adapters)
    expected, found = written_out(base, adapters, *given), predicted(base, adapters, *given)
    assert_equal(found[NAMED], expected[NAMED])
    assert_equal(gradients(adapters, found), gradients(adapters, expected))
    with torch.no_grad():
        assert torch.equal(found[2], base.predict(*given)[2])
        assert_equal(predicted(base, adapters, *given)[NAMED], expected[NAMED])


@pytest.mark.parametrize("name", CROSS)
def test_what_both_streams_share_runs_once(concept, name):
    """Attention to text, what comes before its first edit, and of the foundation nothing after its last."""
    base = precise(name)
    adapters = two_adapters(base, concept)
    ran = []
    first = next(iter(base.text_layers))
    end = "conv_out" if hasattr(base.network, "conv_out") else "proj_out"
    watched = [f"{path}.{part}" for path in base.text_layers for part in ("to_q", "to_k", "to_v", "to_out.0")]
    for path in (*watched, first.replace("attn2", "attn1.to_q"), end):
        base.network.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.append(path))
    predicted(base, adapters, *inputs(base, adapters, PROMPTS[:2]))
    assert len(ran) == len(set(ran)) == len(watched) + 2


@pytest.mark.parametrize("name", list(PIPELINES))
def test_what_else_trains_has_its_gradient(concept, name):
    """Where the network's own weights train, or the latents do, nothing of the customized rows is cut short."""
    base = precise(name)
    adapters = two_adapters(base, concept)
    latents, timesteps, told = inputs(base, adapters, PROMPTS[:2])
    latents.requires_grad_()
    predicted(base, adapters, latents, timesteps, told).square().sum().backward()
    by_latents = latents.grad.clone()
    base.network.requires_grad_(True)
    predicted(base, adapters, latents.detach(), timesteps, told).square().sum().backward()
    start = next(parameter for path, parameter in base.network.named_parameters() if path.endswith("weight"))
    assert by_latents.abs().max() > 0 and start.grad.abs().max() > 0
    assert all(layer.attention.get_submodule(layer.values).weight.grad.any() for layer in base.text_layers.values())


@pytest.mark.parametrize("name", CROSS)
def test_attention_of_another_kind_takes_the_general_form(concept, name):
    """A processor that nobody knows may do anything with queries, keys and values."""
    base = precise(name)

    kind: Any = type(next(iter(base.text_layers.values())).attention.processor)

    class Own(kind):
        pass

    assert all(rank_form.has_rank_form(layer) for layer in base.text_layers.values())
    for layer in base.text_layers.values():
        layer.attention.processor = Own()
    assert not any(rank_form.has_rank_form(layer) for layer in base.text_layers.values())
    adapters = two_adapters(base, concept)
    given = inputs(base, adapters)
    assert_equal(predicted(base, adapters, *given)[NAMED], written_out(base, adapters, *given)[NAMED])


def test_joint_attention_and_keys_take_the_general_form(concept):
    base = precise("sd-3")
    assert not any(rank_form.has_rank_form(layer) for layer in base.text_layers.values())
    base = precise("sd-1")
    adapters = two_adapters(base, concept, keys=True)
    given = inputs(base, adapters)
    seen = []
    attention = next(iter(base.text_layers.values())).attention
    attention.to_k.register_forward_hook(lambda *_: seen.append("keys"))
    predicted(base, adapters, *given)
    assert len(seen) == 2


@torch.no_grad()
@pytest.mark.parametrize("name", list(PIPELINES))
def test_released_rows_have_maps_of_their_own(concept, name):
    base = precise(name)
    locked, single = (two_adapters(base, concept, streams=streams) for streams in ("dual", "single"))
    given = inputs(base, locked)
    expected = with_values_of_their_own(base, locked, *given)
    rows = []
    layer = next(iter(base.text_layers.values())).attention.get_submodule("to_q")
    with base.customized(*locked) as denoiser:
        before = denoiser.predict(*given)
        denoiser.release(True)
        handle = layer.register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
        released = denoiser.predict(*given)
        handle.remove()
        denoiser.release(False)
        assert torch.equal(denoiser.predict(*given), before)
    assert rows == [len(PROMPTS)], "every row runs once, all in one pass"
    assert torch.equal(released[2], base.predict(*given)[2])
    assert torch.equal(released, predicted(base, single, *given))
    assert_equal(released, expected)
    assert (released[NAMED] - before[NAMED]).abs().max() > 1e-9


def test_pictures_with_the_lock_released(base, adapter):
    """One call in each later step, as of a plain image; prompts without a concept are untouched."""
    settings: dict[str, Any] = {"seeds": (1,), "num_inference_steps": 4, "batch_size": 1}
    rows = []
    base.network.conv_in.register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    exact, half, never = (
        torch.cat(list(sample_prompts(base, ["a <my-cat>", "a dog"], [adapter], lock_until=share, **settings)))
        for share in (1.0, 0.5, 0.0)
    )
    assert torch.equal(half[1], exact[1])
    differences = [(picture - exact)[0].abs().max() for picture in (half, never)]
    assert 0 < differences[0] < differences[1]
    plain = [2] * 4
    assert rows == [2, 1] * 4 + plain + [2, 1] * 2 + [2] * 2 + plain + plain + plain
    with pytest.raises(UserError, match=r"lock_until = 1\.5"):
        next(sample_prompts(base, "a cat", lock_until=1.5))
