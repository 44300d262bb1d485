"""How times become ratios, a noise floor and a table; what counts as the network's time."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import load_script
from diffusers import UNet2DConditionModel
from torch.utils.checkpoint import checkpoint

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"


def load(name: str) -> ModuleType:
    return load_script(SPEED / f"{name}.py")


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    return load("measure")


def measured(measure, name, seconds, network=0.5):
    rounds = [{"cpu": s, "wall": 2 * s, "network": network * s, "peak_bytes": 10**6 * s} for s in seconds]
    return measure.Measured(measure.Row(name, "worker"), {"cpu": 9.0, "peak_bytes": 1, "flops": 7}, rounds)


def test_ratios_are_taken_within_rounds(measure):
    plain = measured(measure, "plain", [1, 2, 4])  # the machine slows down, for both alike
    rival = measured(measure, "rival", [3, 6, 12])
    assert measure.ratios([plain, rival], "plain", "cpu") == {"plain": (1, 1, 1), "rival": (3, 3, 3)}


def test_a_median_has_an_interval_between_two_of_the_ratios(measure):
    # of nine values the second and the eighth enclose the median with at least 95% (it is a matter of coin tosses)
    ratio = measure.Ratio.of([1.8, 1.1, 1.2, 1.4, 1.3, 1.5, 1.6, 1.7, 1.0])
    assert ratio == (1.4, 1.1, 1.7)
    assert ratio.off == pytest.approx(0.7)
    assert measure.Ratio.of([1.02, 0.97, 1.1]) == (1.02, 0.97, 1.1)


def test_the_noise_floor_is_how_far_a_row_may_be_off_from_itself(measure):
    rows = [measured(measure, "plain", [1, 1, 1]), measured(measure, "again", [1.02, 0.97, 1.1])]
    assert measure.result("one step", rows, ["plain"], "again", "cpu")["noise_floor"] == pytest.approx(0.1)


def test_the_table_says_what_says_nothing(measure):
    rows = [
        measured(measure, "plain", [1, 1, 1]),
        measured(measure, "near", [1.03, 1.03, 1.03]),
        measured(measure, "far", [1.5, 1.4, 1.6], network=0.8),
        measured(measure, "plain, again", [1.02, 1.02, 0.98]),
    ]
    found = measure.result("one step", rows, ["plain"], "plain, again", "cpu") | {"repeats": 3}
    assert found["rows"]["far"]["cpu"] | {"rounds": None} == {"median": 1.5, "minimum": 1.4, "rounds": None}
    assert found["rows"]["far"]["peak_bytes"] == 1.6e6 and found["rows"]["far"]["flops"] == 7
    assert found["rows"]["far"]["share_outside_network"] == pytest.approx(0.2)
    assert not found["noisy"]
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in measure.table(found).splitlines() if line}
    assert "| 1.030 (1.030 to 1.030) ≈ |" in lines["near"]
    assert "| 1.500 (1.400 to 1.600) |" in lines["far"] and "300 ms, 20.0%" in lines["far"]
    noisy = measure.result("one step", rows, ["plain"], "far", "cpu") | {"repeats": 3}
    assert "Noisy run" in measure.table(noisy)


def test_time_in_the_network_is_counted_once(pipe, monkeypatch):
    turns = load("turns")
    monkeypatch.setattr(UNet2DConditionModel, "forward", UNet2DConditionModel.forward)  # to be put back afterwards
    monkeypatch.setattr(torch.Tensor, "backward", torch.Tensor.backward)

    class Ticks:
        """Every look at this clock takes a second."""

        seconds = 0

        def now(self):
            self.seconds += 1
            return self.seconds

        def between(self, first, last):
            return last - first

    network = turns.NetworkClock(Ticks())
    latents, text_states = torch.randn(1, 4, 8, 8, requires_grad=True), torch.randn(1, 32, 16)
    # a backward pass that runs the network again
    prediction = checkpoint(lambda x: pipe.unet(x, 500, text_states).sample, latents, use_reentrant=False)
    assert network.taken() == 1
    prediction.sum().backward()
    assert network.taken() == 1
    assert network.taken() == 0


def test_a_student_arrives_between_two_judgements(monkeypatch):
    monkeypatch.syspath_prepend(SPEED)  # scripts find those beside them
    arrival = load("time_to_quality").arrival
    curve = [(0, 0.0, 1.0), (4, 2.0, 0.2), (8, 4.0, 0.05)]  # a tenth lies halfway, by the logarithm
    assert arrival(curve) == (pytest.approx(6), pytest.approx(3))
    assert arrival(curve[:2]) is None
