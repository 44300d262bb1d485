"""Imports run one way; the folder of methods is the registry."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "infusion"
# Each module may import from its own row and those below, never from those above.
ROWS = [
    {"cli"},
    {"cli_audit", "cli_together"},
    {"cli_toybox", "cli_measure", "cli_hub", "cli_prepare"},
    {"cli_models"},
    {"repository"},
    {"showcase", "gates", "audit_page", "adapter_card", "prepare"},
    {"benchmark"},
    {"audit"},
    {"verdict", "two_concepts", "validity", "evaluation_defaults"},
    {"evaluation", "stopping"},
    {"training_together"},
    {"training"},
    {"report", "pipeline", "customized_pipeline", "comparison", "comparison_page", "comparison_plots"},
    {"foreign"},
    {"checkpoint", "dataset", "sampling", "adapter_file", "masks"},
    {"metrics"},
    {"methods", "foreign", "latents", "crop"},
    {"base"},
    {"segmenter"},
    {"prompts", "encoders", "judging", "model_card"},
    {"concept_list"},
    {"concept", "recipes", "settings", "toybox"},
    {"concept_folder", "picture_files"},
    {"metadata"},
    {"files", "hub", "intervals", "launch", "measures", "terminal"},
    {"errors"},
]
ROW = {module: row for row, modules in enumerate(ROWS) for module in modules}


def imports(file: Path) -> set[str]:
    """Modules of ours that a file imports at run time (not those for type checking only)."""
    tree = ast.parse(file.read_text())
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    names = {
        node.module.split(".")[1]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node not in typing_only and (node.module or "").startswith("infusion.")
    }
    return names


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_run_one_way(file):
    module = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if module == "__init__":
        return
    assert module in ROW, f"{module} has no row yet"
    wrong = {other for other in imports(file) if other != module and ROW[other] < ROW[module]}
    assert not wrong
    if module in ("methods", "base"):
        assert not imports(file) & {"training", "pipeline", "dataset"}
    if module == "toybox":
        assert imports(file) <= {"toybox", "files", "errors"}


def test_every_method_file_is_registered():
    from infusion.methods import METHODS

    files = {file.stem for file in (SOURCE / "methods").glob("*.py")} - {"__init__", "method"}
    assert files == {method.__module__.rsplit(".", 1)[1] for method in METHODS.values()}


def test_every_module_says_where_data_flows():
    for file in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text())), file
