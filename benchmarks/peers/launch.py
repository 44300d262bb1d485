"""One of diffusers' training scripts + its arguments -> what the script makes; the script is run as it is.

    python launch.py SCRIPT --argument value ...

The scripts import torchvision, which this project does without: they get a stand-in, once diffusers and transformers
have been imported and have seen that there is none.
"""

import ast
import importlib
import runpy
import sys
from pathlib import Path

import stand_in

_OPTIONAL_IN = ("diffusers", "transformers")
_FETCHED_LATE = {
    "diffusers": ["StableDiffusionPipeline", "StableDiffusionXLPipeline"],
    "transformers": ["CLIPTextModel"],
}


def import_first(script: Path) -> None:
    """Import what the script will import of the libraries that ask whether there is a torchvision."""
    names = {package: list(late) for package, late in _FETCHED_LATE.items()}
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _OPTIONAL_IN:
            names.setdefault(node.module or "", []).extend(alias.name for alias in node.names)
    for module, wanted in names.items():
        there = importlib.import_module(module)
        for name in wanted:
            getattr(there, name)


def launch(script: Path, arguments: list[str]) -> None:
    import_first(script)
    stand_in.install()
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    launch(Path(sys.argv[1]), sys.argv[2:])
