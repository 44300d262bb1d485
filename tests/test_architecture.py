"""Imports run one way through the rooms; code stays readable in size; the folder of methods is the registry."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "infusion"
# Each room may import from its own folder and from the floors below; rooms on one floor never see each other.
FLOORS = [
    {"cli"},
    {"auditing", "benchmark"},
    {"foundation", "training", "evaluation"},
    {"generation", "sharing"},
    {"methods"},
    {"concepts", "pages"},
    {"metrics"},
    {"foreign"},
    {"base"},
    {"toybox"},
    {"root"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(file: Path) -> str:
    first = file.relative_to(SOURCE).parts[0]
    return first if first in FLOOR else "cli" if first == "__main__.py" else "root"


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(file: Path) -> Iterator[str]:
    """Every module of ours that a file imports, in either form, but for type checkers alone."""
    typing_only = {
        node
        for block in ast.walk(tree_of(file))
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree_of(file)):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("infusion."))
        elif isinstance(node, ast.ImportFrom) and node.module == "infusion":
            yield from (f"infusion.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("infusion."):
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_run_one_way(file: Path) -> None:
    own = room_of(file)
    for module in imported(file):
        parts = module.split(".")
        other = parts[1] if parts[1] in FLOOR else "root"
        assert other == own or FLOOR[other] > FLOOR[own], f"{file.relative_to(SOURCE)} imports {module}"


def test_every_folder_is_a_room() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms == FLOOR.keys() - {"root"}


def test_the_rooms_read_as_the_story() -> None:
    for room in FLOOR.keys() - {"root"}:
        first = (SOURCE / room / "__init__.py").read_text(encoding="utf-8").splitlines()[0].removesuffix('"""')
        assert first.startswith('"""') and first.endswith("."), room


def test_every_module_says_where_data_flows() -> None:
    for file in FILES:
        assert ast.get_docstring(tree_of(file)), file


def test_the_readme_shows_the_rooms() -> None:
    readme = (SOURCE.parents[1] / "README.md").read_text(encoding="utf-8")
    for room in FLOOR.keys() - {"root"}:
        first = (SOURCE / room / "__init__.py").read_text(encoding="utf-8").splitlines()[0]
        said = first.removeprefix('"""').removesuffix('"""').rstrip(".")
        assert f"  {room + '/':13} {said}\n" in readme, room
    floors = [room for floor in FLOORS for room in sorted(floor) if room != "root"]
    shown = [line.split("/")[0].strip() for line in readme.split("src/infusion/\n")[1].splitlines() if "/ " in line]
    floor_of = [FLOOR[room] for room in shown if room in floors]
    assert floor_of == sorted(floor_of)


def test_lines_of_the_readme_can_be_read() -> None:
    lines = (SOURCE.parents[1] / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) >= 200] == []


MAX_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 400, 60, 8
# What is larger than the rest, by name. Typer's commands may have as many parameters as a command has options.
LARGE = {
    "toybox/scene.py": "one world, told in one place",
    "generation/pipeline.py: sample_prompts": "settings by keyword, as pipelines of diffusers have them",
    "training/loop.py: train": "what a caller has already is given by keyword, and made where it is not",
}


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree_of(file)) if isinstance(node, ast.FunctionDef))


def is_command(function: ast.FunctionDef) -> bool:
    """Whether its parameters are the options of a command of typer, with their help."""
    arguments = [argument for argument in function.args.args if argument.annotation]
    return any("Annotated" in ast.unparse(a.annotation) or "Option" in ast.unparse(a.annotation) for a in arguments)  # type: ignore[arg-type]


def test_files_functions_and_arguments_stay_small() -> None:
    large = {}
    for file in FILES:
        name = str(file.relative_to(SOURCE))
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > MAX_LINES:
            large[name] = f"{lines} lines"
        for function in functions(file):
            where = f"{name}: {function.name}"
            body = function.end_lineno - function.body[0].lineno + 1  # type: ignore[operator]
            arguments = [a for a in (*function.args.args, *function.args.kwonlyargs) if a.arg not in ("self", "cls")]
            if body > MAX_FUNCTION_LINES:
                large[where] = f"{body} lines"
            elif len(arguments) > MAX_ARGUMENTS and not is_command(function):
                large[where] = f"{len(arguments)} arguments"
    assert large.keys() == LARGE.keys(), large


def test_methods_never_see_each_other() -> None:
    support = {"adapter", "adapter_file", "closed_form", "keys_and_values", "method"}
    for file in (SOURCE / "methods").rglob("*.py"):
        own = file.relative_to(SOURCE / "methods").parts[0].removesuffix(".py")
        others = {module.split(".")[2] for module in imported(file) if module.startswith("infusion.methods.")}
        assert others <= support | {own, "METHODS", "Adapter", "Method"}, file


def test_public_names_have_types_for_users() -> None:
    import infusion

    assert (SOURCE / "py.typed").exists()
    block = next(node for node in tree_of(SOURCE / "__init__.py").body if isinstance(node, ast.If))
    typed = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(infusion.__all__)
    assert all(getattr(infusion, name) is not None for name in infusion.__all__)
