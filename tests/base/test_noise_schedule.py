"""A schedule's facts are the same in every process."""

import os
import subprocess
import sys

import pytest

SCRIPT = (
    "from diffusers import PNDMScheduler\n"
    "from infusion.base.noise_schedule import noise_schedule, schedule_facts\n"
    "scheduler = PNDMScheduler(skip_prk_steps=True)\n"
    "print(schedule_facts(noise_schedule(scheduler)))"
)


@pytest.mark.slow
def test_facts_do_not_depend_on_the_process() -> None:
    """diffusers lists the settings that were left at their defaults in the order of a set."""
    printed = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(printed) == 1 and "_use_default_values" in printed.pop()
