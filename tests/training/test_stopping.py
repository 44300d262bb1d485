"""The stop rule: which check is kept, when training ends, what a resumed training knows."""

from collections.abc import Generator

import pytest
import torch
from safetensors.torch import save_file

from infusion.concepts.concept import Concept
from infusion.errors import UserError
from infusion.methods.infusion import Infusion
from infusion.metrics.encoders import load_clip, load_image_encoder
from infusion.toybox.concepts import concept_images
from infusion.training.loop import Progress
from infusion.training.stopping import Check, Kept, SelfCheck, choose, train_until_best


def check(step, score):
    return Check(step, learnt=score, followed=score, loss=0.1)


def test_the_score_is_the_harmonic_mean_of_shares():
    assert Check(1, 0.5, 0.5, 0).score == pytest.approx(0.5)
    assert Check(1, 1.0, 0.5, 0).score == pytest.approx(2 / 3)
    assert Check(1, 3.0, 1.0, 0).score == 1 and Check(1, -1.0, 1.0, 0).score == 0
    assert Check(1, 0.0, 0.0, 0).score == 0


def test_one_lucky_check_is_not_chosen():
    scores = [0.1, 0.5, 0.55, 0.5, 0.2, 0.7, 0.1]
    checks = [check(step, score) for step, score in enumerate(scores)]
    assert choose(checks, range(7)).step == 2
    assert choose(checks[:2], range(2)).step == 1
    assert choose(checks, {0, 3, 6}).step == 3, "those without a state only count as neighbours"


@pytest.mark.parametrize("scores", [[0.5, 0.55, 0.5, 0.3, 0.74], [0.74, 0.3, 0.5, 0.55, 0.5]])
def test_an_end_is_not_chosen_for_having_one_neighbour(scores):
    """Of two values by chance the mean is higher more often than that of three."""
    checks = [check(step, score) for step, score in enumerate(scores)]
    assert scores[choose(checks, range(5)).step] == 0.55
    rising = [check(step, score) for step, score in enumerate([0.1, 0.3, 0.5, 0.6, 0.7])]
    assert choose(rising, range(5)).step == 4


class Training:
    """A training whose adapter holds the number of the step."""

    def __init__(self, adapter, steps, first=0):
        self.adapter, self.steps, self.first, self.closed = adapter, steps, first, False

    def run(self):
        try:
            for step in range(self.first + 1, self.steps + 1):
                for parameter in self.adapter.parameters():
                    parameter.data.fill_(step)
                yield Progress(step, self.steps, 1 / step, 1.0, 0.0)
        finally:
            self.closed = True


def followed(adapter, scores, steps, first=0, stop_at=None, kept_path=None, **settings):
    """Steps done, and the number that the adapter holds in the end."""
    training = Training(adapter, steps, first)

    def scripted(adapter, step, loss):
        return check(step, scores.get(step, 0.0))

    rule = train_until_best(training.run(), adapter, scripted, Kept(kept_path), every=10, **settings)
    step = first
    for progress, _ in rule:
        step = progress.step
        if step == stop_at:
            assert isinstance(rule, Generator)
            rule.close()
            return step, None
    assert training.closed
    return step, float(next(adapter.parameters())[0])


@pytest.fixture
def fresh(base, concept):
    return Infusion().adapter(base, concept)


def test_the_best_state_is_left_and_training_ends_early(fresh):
    scores = {10: 0.3, 20: 0.8, 30: 0.7, 40: 0.2, 50: 0.1}
    assert followed(fresh, scores, steps=100, patience=2) == (40, 20.0)


def test_a_rising_score_is_followed_to_the_last_step(fresh):
    assert followed(fresh, {10: 0.1, 20: 0.2, 25: 0.3}, steps=25) == (25, 25.0)


def test_a_resumed_training_remembers_what_was_best(fresh, tmp_path):
    scores, kept = {10: 0.9, 20: 0.8, 30: 0.1, 40: 0.0}, tmp_path / "kept.safetensors"
    followed(fresh, scores, steps=40, stop_at=25, kept_path=kept)
    assert followed(fresh, scores, steps=40, first=24, kept_path=kept) == (40, 10.0)
    assert kept.exists(), "it is of use until the adapter is saved"
    assert followed(fresh, {}, steps=40, first=40, kept_path=kept) == (40, 10.0)


@pytest.mark.parametrize(
    "scores",
    [
        [0.6, 0.6, 0.6, 0.3, 0.3, 1.0, 0.0],  # the last but one leads until the last is known
        [0.1, 0.2, 0.9, 0.1, 0.9, 0.0, 0.8],
        [0.5] * 7,
    ],
)
def test_the_best_state_is_there_whatever_comes_next(fresh, scores):
    for number in range(1, len(scores) + 1):
        at = {10 * (n + 1): score for n, score in enumerate(scores[:number])}
        best = choose([check(step, score) for step, score in at.items()], at.keys()).step
        assert followed(fresh, at, steps=10 * number, patience=10) == (10 * number, best)


def test_only_what_may_be_best_is_held():
    kept = Kept()
    for step, score in ((1, 0.9), (2, 0.8), (3, 0.1), (4, 0.0)):
        kept.add(check(step, score), {})
    assert kept.states.keys() == {1, 4} and kept.best.step == 1 and kept.checks_since_best == 3
    kept.forget_from(4)
    assert [one.step for one in kept.checks] == [1, 2, 3] and kept.states.keys() == {1}


def test_what_others_found_or_damaged_is_refused(tmp_path):
    path = tmp_path / "kept.safetensors"
    Kept(path, "a clip").add(check(1, 0.5), {"x": torch.zeros(1)})
    assert Kept(path, "a clip").best.step == 1
    with pytest.raises(UserError, match="by other encoders"):
        Kept(path, "another clip")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors", {"checks": "[1]"})
    (tmp_path / "torn.safetensors").write_bytes(path.read_bytes()[:-2])
    for name in ("foreign", "odd", "torn"):
        with pytest.raises(UserError, match=r"cannot be read .* delete it"):
            Kept(tmp_path / f"{name}.safetensors", "a clip")


def test_steps_trained_again_are_checked_again(fresh, tmp_path):
    kept = tmp_path / "kept.safetensors"
    followed(fresh, {10: 0.9, 20: 0.9}, steps=40, stop_at=25, kept_path=kept)
    assert followed(fresh, {10: 0.1, 20: 0.2, 30: 0.3, 40: 0.9}, steps=40, kept_path=kept) == (40, 40.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_a_fresh_adapter_has_learnt_nothing_and_kept_all():
    from infusion.base import load_base

    base = load_base("toybox", device="cpu")
    images, masks = concept_images(2, 2, class_noun="cat")
    toy = Concept("my-cat", "cat", tuple(images), tuple(masks), (None,) * 2, ("1", "2"), (), ("given",) * 2)
    rule = SelfCheck(base, toy, load_clip("toybox-a"), load_image_encoder("toybox-a"))
    adapter = Infusion().adapter(base, toy)
    made = rule(adapter, step=5, loss=0.2)
    assert made.learnt == pytest.approx(0, abs=1e-4) and made.followed == pytest.approx(1, abs=1e-4)
    assert (made.step, made.loss) == (5, 0.2)
    drawn = rule._drawn("cat")
    assert rule._told(drawn.flip(0)) < 0.5 * rule._told(drawn), "images of other prompts"
    assert rule._told(rule._drawn("car")) < 0.8 * rule._told(drawn), "images of another class"
