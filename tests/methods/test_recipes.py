"""What can be said of a training stands where no torch is, and is what the methods are told."""

import subprocess
import sys

from infusion.methods import METHODS
from infusion.recipes import METHOD_SETTINGS


def test_every_method_is_told_its_settings() -> None:
    assert list(METHODS) == list(METHOD_SETTINGS)
    for name, method in METHODS.items():
        settings = METHOD_SETTINGS[name]
        assert issubclass(method, settings)
        assert method.__dataclass_fields__ is settings.__dataclass_fields__, f"{name} declares settings of its own"


def test_reading_settings_does_not_load_torch() -> None:
    script = (
        "import sys\n"
        "from infusion.recipes import METHOD_SETTINGS, TrainingSettings\n"
        "from infusion.settings import parse\n"
        "parse({'learning_rate': '0.02', 'rank': 8, 'seed': 3}, METHOD_SETTINGS['lora'], TrainingSettings)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
