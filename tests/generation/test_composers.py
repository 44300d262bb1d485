"""Composers: what each makes of several concepts, of any methods, in one image."""

import pytest
import torch
from tiny_families import tiny

from infusion.base import Base
from infusion.base.cross_attention import AttentionRecorder
from infusion.base.customization import Named, Strengthened, Words
from infusion.concepts.concept import Concept
from infusion.errors import UserError
from infusion.generation.composers import COMPOSERS
from infusion.generation.composers.masked_noise import concept_masks
from infusion.generation.pipeline import sample_prompts
from infusion.methods import METHODS
from infusion.methods.adapter import Adapter

SETTINGS = {"num_inference_steps": 3, "guidance_scale": 4.0, "seeds": (5,)}


def changed(base: Base, concept: Concept, method: str, name: str) -> Adapter:
    """An adapter of random tensors: it changes every prediction it is asked to."""
    adapter = METHODS[method]().adapter(base, concept)
    adapter.concept_name = name
    generator = torch.Generator().manual_seed(len(name))
    for parameter in adapter.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return adapter.eval()


def drawn(base: Base, prompts: str | list[str], adapters: list[Named], **options: object) -> torch.Tensor:
    return torch.cat(list(sample_prompts(base, prompts, adapters, **SETTINGS, **options)))  # type: ignore[arg-type]


def test_composers_are_called_by_their_files() -> None:
    assert set(COMPOSERS) == {"together", "masked-noise"}
    assert all(hasattr(composer, "composed") for composer in COMPOSERS.values())


def test_the_default_has_a_name(base: Base, adapter: Adapter) -> None:
    prompts = ["a <my-cat>", "a dog"]
    assert torch.equal(drawn(base, prompts, [adapter], composer="together"), drawn(base, prompts, [adapter]))


@pytest.mark.parametrize("composer", list(COMPOSERS))
def test_without_a_concept_every_composer_is_the_base(base: Base, concept: Concept, composer: str) -> None:
    adapters: list[Named] = [changed(base, concept, "infusion", "one"), changed(base, concept, "infusion", "two")]
    images = drawn(base, ["a cat", "a <one>"], adapters, composer=composer)
    expected = drawn(base, ["a cat", "a cat"], [])
    assert torch.equal(images[0], expected[0])
    assert (images[1] - expected[1]).abs().max() > 1e-3


def test_masked_noise_takes_concepts_of_methods_that_change_everything(base: Base, concept: Concept) -> None:
    adapters: list[Named] = [
        changed(base, concept, method, name)
        for method, name in (("lora", "a"), ("dreambooth", "bb"), ("infusion", "c"))
    ]
    prompt = "a <a> beside a <bb> and a <c>"
    with pytest.raises(UserError, match=r"of several methods: <a> \(lora\).*masked-noise"):
        drawn(base, prompt, adapters)
    before = base.digest()
    assert drawn(base, prompt, adapters, composer="masked-noise").isfinite().all()
    assert base.digest() == before


def test_a_concept_acts_in_its_mask_and_nowhere_else(
    base: Base, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = changed(base, concept, "lora", "one")
    conditioning = base.encode(["a <one> on the beach"], adapter.spoken)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    left = torch.zeros(1, 8, 8)
    left[..., :3] = 1
    monkeypatch.setattr(AttentionRecorder, "token_maps", lambda *given: left[None])
    with torch.no_grad(), COMPOSERS["masked-noise"].composed(base, [adapter], conditioning) as composition:
        composed = composition.predict(latents, torch.tensor(400), conditioning)
        plain = base.predict(latents, torch.tensor(400), conditioning)
        with base.customized(adapter) as denoiser:
            own = denoiser.predict(latents, torch.tensor(400), conditioning)
    inside, outside = ((composed - of).abs() for of in (own, plain))
    difference = (own - plain).abs().max()
    assert inside[..., :3].max() < 0.01 * difference and outside[..., 3:].max() < 0.01 * difference


def test_masks_share_every_place() -> None:
    maps = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    maps[2, 1] = 0  # a concept that the second row does not name
    masks = concept_masks(maps)
    assert masks.shape == (3, 2, 1, 4, 4)
    assert masks.min() >= 0 and masks.sum(dim=0).max() <= 1
    assert masks[2, 1].max() == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"composer": "masked-noize"}, 'no composer "masked-noize". Did you mean "masked-noise"'),
        ({"composer": "masked-noise", "lock_until": 0.5}, "lock_until is for the default composer"),
        ({"composer": "masked-noise", "conditions": (1,)}, "takes no conditions, and 1 were given"),
        ({"conditions": (1, 2)}, "takes no conditions, and 2 were given"),
    ],
)
def test_what_composers_refuse(base: Base, adapter: Adapter, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        drawn(base, "a <my-cat>", [adapter], **options)


@pytest.mark.parametrize("composer", list(COMPOSERS))
@pytest.mark.parametrize("method", ["textual-inversion", "custom-diffusion"])
def test_two_concepts_of_one_name_are_refused(base: Base, concept: Concept, composer: str, method: str) -> None:
    adapters: list[Named] = [changed(base, concept, method, "one"), changed(base, concept, method, "one")]
    with pytest.raises(UserError, match="share a name"):
        drawn(base, "a <one>", adapters, composer=composer)


def test_words_and_weakened_adapters_stand_together(base: Base, concept: Concept) -> None:
    weak = [Strengthened(changed(base, concept, "infusion", name), 0.5) for name in ("one", "two")]
    assert drawn(base, "a <one> and a <two>", list(weak)).isfinite().all()
    words = [Words("cat", "three"), Words("dog", "four")]
    expected = drawn(base, "a cat and a dog", [])
    assert torch.equal(drawn(base, "a <three> and a <four>", list(words)), expected)


def test_where_image_and_text_attend_jointly_masked_noise_says_so(concept: Concept) -> None:
    flux = Base.from_pipeline(tiny("flux"))
    with pytest.raises(UserError, match="composer masked-noise is for models with cross-attention"):
        drawn(flux, "a <one>", [changed(flux, concept, "infusion", "one")], composer="masked-noise")
