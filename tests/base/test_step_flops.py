"""Limits of what a step costs on the full-size networks, counted without running them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import step_flops


@pytest.fixture(scope="module")
def sd15():
    return step_flops.Counted(step_flops.SD15)


@pytest.mark.slow
def test_a_training_step_on_stable_diffusion_1_5(sd15):
    """A foundation without gradient, a customized row and its backward pass: 2.351 TFLOP at the least."""
    step = sd15.step()
    assert 2.351 <= step <= 2.360
    with step_flops.general_form():
        assert step < sd15.step() <= 2.41


@pytest.mark.slow
def test_a_guided_step_on_stable_diffusion_1_5(sd15):
    plain, locked, released = sd15.guided()
    assert plain == pytest.approx(2 * sd15.forward())
    assert locked <= 1.46 * plain
    assert released == pytest.approx(plain, rel=1e-3)


@pytest.mark.slow
def test_what_the_graph_keeps_on_stable_diffusion_1_5():
    assert step_flops.kept_mb(step_flops.SD15) <= 569


@pytest.mark.slow
def test_stable_diffusion_xl():
    counted = step_flops.Counted(step_flops.SDXL)
    assert counted.step() <= 18.95
