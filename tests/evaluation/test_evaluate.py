"""What is measured of a model: laws on a tiny base, and the defaults of what is drawn and asked."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from infusion.base.customization import Strengthened
from infusion.errors import UserError
from infusion.evaluation import evaluate as evaluation
from infusion.evaluation import reference as references
from infusion.evaluation.drawing import to_tensor
from infusion.evaluation.evaluate import ConceptImages, Drawn, drawn_with, evaluate
from infusion.evaluation.evaluators import Evaluators
from infusion.evaluation.plans import PROMPTS, Drawing, Plan, Wanted, plan_for, read_prompts, siblings_of
from infusion.evaluation.reference import Reference
from infusion.metrics.encoders import load_clip, load_image_encoder
from infusion.metrics.facts import FACTS
from infusion.metrics.identity import Alignment
from infusion.metrics.wasserstein import Features, chances
from infusion.toybox.scene import CLASSES

PLAN = Plan(
    prompts=tuple(Wanted(text, {}) for text in ("a {} te", "a do {}", "{} ca")),
    unrelated=("a te", "do"),
    siblings=("a dog", "a dog te"),
    drawing=Drawing(num_seeds=2, num_class_pictures=4, num_inference_steps=2, num_timesteps=2),
)


@pytest.fixture(scope="module")
def evaluators():
    return Evaluators(load_clip("toybox-b"), load_image_encoder("toybox-b"))


@pytest.fixture
def drawn():
    return []


@pytest.fixture
def reference(base, evaluators, drawn):
    return Reference(base, "cat", PLAN, evaluators, drawn.append)


@pytest.fixture
def real(concept):
    return ConceptImages(to_tensor(concept.images))


def values(found):
    return {name: figure.value for name, figure in found.measures.items()}


@pytest.mark.slow
def test_the_base_itself_is_nothing_away_from_itself(reference, real):
    found = values(evaluate(reference, None, real))
    for name in ("identity", "class_leak", "w2_exact", "w2_gaussian", "w2_background", "w2_layout", "w2_style"):
        assert found[name] == pytest.approx(0, abs=1e-5), name
    assert found["class_diversity"] == pytest.approx(1) and found["collapse"] == pytest.approx(1)
    assert found["copied"] == 0
    assert max(found[f"lfd_s{n}"] for n in range(1, 5)) < 1e-9


@pytest.mark.slow
def test_a_gated_concept_moves_its_own_prompts_alone(reference, adapter, drawn):
    found = evaluate(reference, adapter, None)
    measures = values(found)
    assert max(measures[f"lfd_s{n}"] for n in range(1, 4)) < 1e-9 < measures["lfd_s4"]
    assert measures["w2_exact"] > 0 and not torch.equal(found.drawn.images, reference.images)
    assert measures["class_diversity"] == pytest.approx(1)
    assert not {"identity", "class_leak", "copied", "collapse"} & measures.keys(), "there were no images"
    assert all(figure.low <= figure.value <= figure.high for figure in found.measures.values())


@pytest.mark.slow
def test_every_picture_drawn_is_reported(reference, adapter, real, drawn):
    evaluate(reference, adapter, real)
    evaluate(reference, None, real)
    assert reference.nulls["w2_exact"] > 0
    assert sum(drawn) == 3 * 6 + 2 * 4 + 7


def test_every_picture_begins_with_a_noise_of_its_own_unless_it_is_shared(base, evaluators):
    twice = replace(PLAN, prompts=PLAN.prompts[:1] * 2)
    first, second = Reference(base, "cat", twice, evaluators).images.split(2)
    assert not torch.equal(first, second)
    first, second = Reference(base, "cat", twice, evaluators, shared_noise=True).images.split(2)
    assert torch.equal(first, second)


def test_no_seed_is_drawn_with_twice_however_many_there_are(base, evaluators, monkeypatch):
    seen = []

    def drawn(base, plan, texts, seeds, **_):
        seen.extend(seeds)
        return torch.zeros(0)

    monkeypatch.setattr(references, "draw", drawn)
    monkeypatch.setattr(references, "decoded", lambda base, latents: latents)
    many = Reference(base, "cat", replace(PLAN, drawing=replace(PLAN.drawing, num_seeds=700)), evaluators)
    assert len(many.images) == len(many.null_images) == 0
    assert len({seed for seeds in seen for seed in seeds}) == 2 * 3 * 700


@pytest.mark.slow
def test_a_concept_that_is_off_draws_the_bases_own_pictures(base, evaluators, adapter):
    """The same noises, image by image; what is told from chance is held against others."""
    plan = replace(PLAN, drawing=replace(PLAN.drawing, num_seeds=3))
    reference = Reference(base, "cat", plan, evaluators)
    off = drawn_with(reference, Strengthened(adapter, 0.0))
    assert torch.equal(off.images, reference.images) and not torch.equal(off.images, reference.null_images)
    own, base = (evaluate(reference, None, None, drawn) for drawn in (off, None))
    assert own.chances == base.chances and own.chances.keys() >= {"w2_background", "w2_style"}


def test_layouts_are_compared_where_a_subject_is_found():
    rng = np.random.default_rng(0)
    plan = replace(PLAN, prompts=PLAN.prompts * 4, drawing=Drawing(num_seeds=4))

    def features(found: float) -> Features:
        rows = torch.from_numpy(rng.normal(size=(48, 4)))
        layout = np.where(rng.random((48, 1)) < found, rng.normal(size=(48, 4)), np.nan)
        return Features(rows, rows, layout, rows)

    null, prompt_of = features(1.0), plan.prompt_of
    assert [chances(null, features(0.4), prompt_of)["w2_layout"] > 0.01 for _ in range(10)].count(True) >= 9
    assert chances(null, features(0.0), prompt_of).keys() == {"w2_background", "w2_style"}
    far = features(0.6)
    assert chances(null, replace(far, layout=far.layout + 3), prompt_of)["w2_layout"] == 1 / 400


class Counting:
    """An encoder, and how many images it has looked at."""

    def __init__(self, encoder):
        self.encoder = encoder
        self.num = 0

    def encode_images(self, images):
        self.num += len(images)
        return self.encoder.encode_images(images)

    def encode_texts(self, texts):
        return self.encoder.encode_texts(texts)


@pytest.mark.slow
def test_every_image_is_looked_at_once_by_every_encoder(base, evaluators, adapter, real):
    clip: Any = Counting(evaluators.clip)
    encoder: Any = Counting(evaluators.encoder)
    reference = Reference(base, "cat", PLAN, Evaluators(clip, encoder))
    evaluate(reference, adapter, real)
    asked, of_class, training = 6, 4, 3
    backgrounds, of_other_seeds = 2 * asked, 2 * asked
    assert encoder.num == 2 * asked + 2 * of_class + training
    assert clip.num == 2 * asked + backgrounds + of_other_seeds + 2 * of_class + training
    before = clip.num
    evaluate(reference, None, real)
    assert clip.num == before + training, "the base's own images were looked at already"


@pytest.mark.slow
def test_copies_are_found(reference, real):
    copies = real.training[torch.arange(6) % 3]
    found = values(evaluate(reference, None, real, Drawn(copies, reference.class_images)))
    assert found["copied"] == 1 and found["collapse"] < 0.5 and found["identity"] > 1


@pytest.mark.slow
def test_a_training_picture_that_is_there_twice_hides_no_copies(reference, real):
    twice = ConceptImages(torch.cat([real.training, real.training[:1]]))
    copies = real.training[torch.arange(6) % 3]
    assert values(evaluate(reference, None, twice, Drawn(copies, reference.class_images)))["copied"] == 1


@pytest.mark.slow
def test_identity_is_left_out_where_floor_and_ceiling_are_one(reference, real):
    alike = ConceptImages(real.training, elsewhere=reference.images)
    found = evaluate(reference, None, alike)
    assert not {"identity", "class_leak"} & found.measures.keys() and "image_alignment" in found.measures


def test_latents_are_kept_and_taken_again(reference, adapter, tmp_path, monkeypatch):
    first = drawn_with(reference, adapter, tmp_path / "one")
    monkeypatch.setattr(evaluation, "draw", None)
    again = drawn_with(reference, adapter, tmp_path / "one")
    assert torch.equal(first.images, again.images) and first.seconds_per_image == again.seconds_per_image


def test_the_scale_of_identity_is_that_of_other_real_pictures_where_there_are_some(evaluators, real):
    noise = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    training, other = (evaluators.encoder.encode_images(some) for some in (real.training, noise))
    alone, given = Alignment.measured(training, other), Alignment.measured(training, other, training)
    assert given.ceiling > alone.ceiling > alone.floor == pytest.approx(given.floor)


@pytest.mark.parametrize("noun", [*CLASSES, "woman", "corgi dog", "thing", "backpack"])
@pytest.mark.parametrize("toybox", [True, False])
def test_probes_name_neither_the_class_nor_what_is_unknown(noun, toybox):
    plan = plan_for(noun, toybox, quick=False)
    siblings = siblings_of(noun, CLASSES if toybox else None)
    assert len(siblings) == len(set(siblings)) == 3 and len(plan.unrelated) >= 4 and len(plan.siblings) == 9
    assert not toybox or set(siblings) <= set(CLASSES)
    for text in (*plan.unrelated, *plan.siblings):
        assert f" {noun.split()[-1]} " not in f" {text} "
    assert not any(f" {sibling} " in f" {text} " for sibling in siblings for text in plan.unrelated)


def test_siblings_are_alike():
    assert siblings_of("cat", CLASSES) == ["dog", "rabbit", "elephant"] and siblings_of("woman")[0] == "person"
    assert siblings_of("teddy bear", CLASSES)[:2] == ["robot", "snowman"]


def test_quick_asks_less():
    quick, whole = plan_for("cat", True, quick=True), plan_for("cat", True, quick=False)
    assert len(quick.prompt_of) * 4 < len(whole.prompt_of) and all(one in PROMPTS for one in quick.prompts)
    assert plan_for("cat", True, quick=True, num_seeds=5).drawing.num_seeds == 5
    assert plan_for("cat", False, quick=False).drawing.num_inference_steps == 20


def test_nouns_have_their_article():
    texts = [prompt.text for prompt in plan_for("elephant", False, quick=False).prompts]
    assert texts[0] == "an {} on the beach" and texts[8] == "a sketch of an {} in the forest"
    assert plan_for("unicorn", False, quick=True).prompts[0].text == "a {} on the beach"
    siblings = plan_for("car", False, quick=True).siblings
    assert siblings[:2] == ("an airplane on the beach", "a hot air balloon on the beach")


def test_default_prompts_ask_for_what_judges_know():
    for wanted in PROMPTS:
        assert wanted.text.count("{}") == 1
        assert all(value in FACTS[fact] for fact, value in wanted.facts.items())


def test_prompts_are_read_from_both_kinds_of_file(tmp_path):
    (tmp_path / "p.txt").write_text("# places\na {} here\n\n  a {} there  \n")
    assert [one.text for one in read_prompts(tmp_path / "p.txt")] == ["a {} here", "a {} there"]
    tables = '[[prompts]]\ntext = "a {} by the sea"\nbackground = "beach"\n[[prompts]]\ntext = "a {}"\n'
    (tmp_path / "p.toml").write_text(tables)
    assert read_prompts(tmp_path / "p.toml") == (Wanted("a {} by the sea", {"background": "beach"}), Wanted("a {}", {}))
    (tmp_path / "q.toml").write_text('prompts = ["a {} here", "a {} there"]')
    assert len(read_prompts(tmp_path / "q.toml")) == 2


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.txt", "", "has no prompt; intervals are over prompts and need two or more"),
        ("p.txt", "a {} here", "has one prompt"),
        ("p.txt", "a {} here\na cat there", 'The prompt "a cat there" must have {} once'),
        ("p.txt", "a {} here\na {} and a {}", "must have {} once"),
        ("p.txt", "a {} here\na {} {0}", "no other { } < >"),
        ("p.txt", b"\xff\xfe\x00a", "is not a text file"),
        ("p.toml", "prompts = [", "is not a TOML file"),
        ("p.toml", "prompt = []", 'Unknown key "prompt" in'),
        ("p.toml", "prompts = [1, 2]", "must be a list of texts"),
        ("p.toml", "[[prompts]]\nbackground = 'beach'", 'Prompt 1 has no text = "a {} on the beach"'),
        (
            "p.toml",
            "[[prompts]]\ntext = 'a {}'\nbackgrund = 'beach'",
            'asks for "backgrund". Did you mean "background"?',
        ),
        (
            "p.toml",
            "[[prompts]]\ntext = 'a {}'\nbackground = 'beech'",
            'no background is "beech". Did you mean "beach"?',
        ),
        ("p.toml", "[[prompts]]\ntext = 'a {}'\nrelation = 'left of'", "needs second"),
        ("p.toml", "[[prompts]]\ntext = 'a {} and'\nsecond = 'cat'", "ask for count = 2"),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused(tmp_path, name, text, told):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as refused:
        read_prompts(tmp_path / name, "cat")
    assert told in str(refused.value)
