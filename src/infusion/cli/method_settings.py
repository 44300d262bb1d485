"""Flags, --set and a TOML file -> the method and the settings of a training, and what they say of themselves."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from infusion.cli.options import check_choice
from infusion.errors import UserError

DEFAULT_METHOD = "infusion"


class SettingsCommand(TyperCommand):
    """A command some of whose flags are settings: their help is read where the settings are declared."""

    def format_help(self, *args: Any) -> None:
        explained = _explained_settings()
        for param in self.params:
            if param.name in explained:
                param.help = explained[param.name]  # type: ignore[attr-defined]
        self.epilog = "Other methods have settings of their own, for --set and --config: --dry-run prints them all."
        super().format_help(*args)


def merged_settings(flags: dict[str, Any], assignments: Sequence[str], config: Path | None) -> dict[str, Any]:
    """Settings by name: a flag goes before --set, that before the file. Flags that are None say nothing."""
    merged = _read_config(config) if config is not None else {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise UserError(f'--set "{assignment}" is not NAME=VALUE, such as --set learning_rate=0.01.')
        merged[name.strip().replace("-", "_")] = value.strip()
    return merged | {name: value for name, value in flags.items() if value is not None}


def method_and_training(flags: dict[str, Any], assignments: Sequence[str], config: Path | None) -> Any:
    """The method and the training settings, from all that was given."""
    from infusion.methods import METHODS
    from infusion.settings import parse
    from infusion.training.settings import TrainingSettings

    names = {"method", *(field.name for cls in _classes_with_flags() for field, _ in _fields(cls))}
    given = {name: value for name, value in flags.items() if name in names}
    merged = merged_settings(given, assignments, config)
    method = str(merged.pop("method", DEFAULT_METHOD))
    check_choice("method", method, METHODS)
    return parse(merged, METHODS[method], TrainingSettings)


def _classes_with_flags() -> tuple[type[Any], ...]:
    """Whose settings have flags; those that only another method has are given by --set."""
    from infusion.methods import METHODS
    from infusion.training.settings import TrainingSettings

    return METHODS[DEFAULT_METHOD], TrainingSettings


def _explained_settings() -> dict[str, str]:
    """What the settings with flags say of themselves, by name."""
    from infusion.methods import METHODS
    from infusion.methods.method import Method
    from infusion.settings import allowed

    shared = {field.name for field, _ in _fields(Method)}
    explained = {"method": f"How it is learnt: {', '.join(METHODS)}. [default: {DEFAULT_METHOD}]"}
    for cls in _classes_with_flags():
        for field, hint in _fields(cls):
            about = field.metadata["help"].rstrip(".")
            about += "" if hint in (str, bool) else f"; {allowed(field, hint)}"
            of_method = issubclass(cls, Method)
            only = f" Of {DEFAULT_METHOD} only." if of_method and field.name not in shared else ""
            others = "; other methods have their own" if of_method and field.name in shared else ""
            explained[field.name] = f"{about}.{only} [default: {field.default}{others}]"
    return explained


def _fields(cls: type[Any]) -> list[tuple["dataclasses.Field[Any]", Any]]:
    from typing import get_type_hints

    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _read_config(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the settings in {path}: {error.strerror}.") from error
    except ValueError as error:  # also what TOML or UTF-8 does not allow
        raise UserError(f"{path} is not a TOML file: {error}.") from error
