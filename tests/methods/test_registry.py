"""The folder is the registry, and what can be said of a training stands where no torch is."""

import subprocess
import sys

from infusion.methods import METHODS


def test_methods_are_called_by_their_files() -> None:
    assert next(iter(METHODS)) == "infusion"
    for name, method in METHODS.items():
        assert method.name == name
        assert method.__module__.rsplit(".", 1)[1] == name.replace("-", "_")


def test_reading_settings_does_not_load_torch() -> None:
    script = (
        "import sys\n"
        "from infusion.methods import METHODS\n"
        "from infusion.settings import parse\n"
        "from infusion.training.settings import TrainingSettings\n"
        "assert 'lora' in METHODS\n"
        "parse({'learning_rate': '0.02', 'layers': 'up', 'seed': 3}, METHODS['infusion'], TrainingSettings)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
