"""How often chance alone makes two sets of images differ so much."""

import math

import numpy as np
import pytest
import torch

from infusion.metrics.two_samples import chance

PROMPT_OF = np.repeat(np.arange(6), 4)


def drawn(seed, prompt_of=PROMPT_OF, apart=20.0):
    """Features whose prompts are far apart."""
    rng = np.random.default_rng(seed)
    return apart * prompt_of[:, None] + rng.normal(size=(len(prompt_of), 4))


def test_without_a_difference_every_chance_is_as_frequent():
    found = [chance(drawn(2 * n), drawn(2 * n + 1), PROMPT_OF, PROMPT_OF) for n in range(60)]
    for level in (0.1, 0.5, 0.9):
        assert sum(value <= level for value in found) / 60 == pytest.approx(level, abs=0.2)


def test_a_shift_within_every_prompt_is_seen():
    """Dealt without regard to prompts it would be lost among their differences."""
    assert chance(drawn(0) + 1.5, drawn(1), PROMPT_OF, PROMPT_OF) == 1 / 400
    assert chance(torch.from_numpy(drawn(0)), drawn(1), PROMPT_OF, PROMPT_OF) > 0.01


def test_so_is_a_spread_with_the_same_middle():
    assert chance(4 * drawn(0, apart=0), drawn(1, apart=0), PROMPT_OF, PROMPT_OF) < 0.01


def test_a_side_with_fewer_pictures_of_a_prompt_is_no_difference():
    few = np.flatnonzero(np.arange(24) % 4 < 2)
    found = [chance(drawn(2 * n)[few], drawn(2 * n + 1), PROMPT_OF[few], PROMPT_OF) for n in range(40)]
    assert 0.3 < np.mean(found) < 0.7 and sum(value <= 0.05 for value in found) <= 6


def test_the_same_pictures_are_no_difference():
    assert chance(drawn(0), drawn(0), PROMPT_OF, PROMPT_OF) == 1


@pytest.mark.parametrize(("num_prompts", "num_seeds"), [(1, 2), (8, 1), (2, 2)])
def test_too_few_pictures_tell_nothing(num_prompts, num_seeds):
    prompt_of = np.repeat(np.arange(num_prompts), num_seeds)
    assert math.isnan(chance(drawn(0, prompt_of), drawn(1, prompt_of), prompt_of, prompt_of))
    assert math.isnan(chance(np.zeros((0, 4)), drawn(1, prompt_of), prompt_of[:0], prompt_of))
