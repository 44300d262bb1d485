"""A mapping of names to values -> settings that are checked, as frozen dataclasses."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from infusion.errors import UserError, all_at_once, nearest

Settings = TypeVar("Settings")

_TRUE, _FALSE, _NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null", "")


def setting(
    default: Any,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field with its explanation and range: `minimum` and `maximum` are allowed, `above` is not.

    The explanation given here is the one the command line shows.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "above": above}
    return dataclasses.field(default=default, metadata=metadata)


def from_mapping(cls: type[Settings], mapping: Mapping[str, Any]) -> Settings:
    """An instance of the dataclass `cls`, with the values of `mapping` in the place of its defaults.

    Numbers and switches may come as text ("0.01", "true"), as they do from flags and forms. Unknown names,
    values of the wrong type and values that are not allowed are reported together in one UserError.
    """
    return parse(mapping, cls)[0]


def parse(mapping: Mapping[str, Any], *classes: type[Any]) -> tuple[Any, ...]:
    """One instance of each dataclass, from one flat mapping. A name that two of them have goes to both."""
    fields = {field.name: None for cls in classes for field in _settable(cls)}
    mistakes = [_unknown(name, fields) for name in mapping if name not in fields]
    instances = []
    for cls in classes:
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        wrong: list[str] = []
        for field in _settable(cls):
            if field.name in mapping:
                try:
                    values[field.name] = _converted(mapping[field.name], hints[field.name])
                except ValueError:
                    wrong.append(_not_allowed(field, hints[field.name], mapping[field.name]))
                    continue
                if not _in_range(values[field.name], field):
                    wrong.append(_not_allowed(field, hints[field.name], mapping[field.name]))
        if not wrong:
            try:
                instances.append(cls(**values))
            except UserError as error:  # what only the class itself can tell: values that do not go together
                wrong.append(str(error))
        mistakes += [line for line in wrong if line not in mistakes]
    if mistakes:
        raise all_at_once(mistakes, "the settings")
    return tuple(instances)


def validate(instance: Any) -> None:
    """For a dataclass's `__post_init__`: a UserError that lists every field whose value is not allowed."""
    hints = typing.get_type_hints(type(instance))
    mistakes = []
    for field in _settable(type(instance)):
        value = getattr(instance, field.name)
        if not (_is_of(value, hints[field.name]) and _in_range(value, field)):
            mistakes.append(_not_allowed(field, hints[field.name], value))
    if mistakes:
        raise all_at_once(mistakes, "the settings")


def allowed(field: "dataclasses.Field[Any]", hint: Any) -> str:
    """What a field may be, in words: `a number above 0`, `one of "all", "decoder"`."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{option}"' for option in typing.get_args(hint))
    options = _options(hint)
    if len(options) > 1:
        described = [allowed(field, option) for option in options if option is not type(None)]
        return " or ".join(described + (['"none"'] if type(None) in options else []))
    word = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(hint, str(hint))
    if hint is bool or hint is str:
        return word
    bounds = [("of at least", "minimum"), ("above", "above"), ("of at most", "maximum")]
    limits = [f"{phrase} {field.metadata[key]}" for phrase, key in bounds if field.metadata.get(key) is not None]
    return " ".join([word, " and ".join(limits)]).strip()


def _settable(cls: type[Any]) -> list["dataclasses.Field[Any]"]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _unknown(name: str, known: Mapping[str, None]) -> str:
    return f'Unknown setting "{name}".{nearest(name, known)} There are: {", ".join(known)}.'


def _not_allowed(field: "dataclasses.Field[Any]", hint: Any, value: Any) -> str:
    close = nearest(value, [o for o in typing.get_args(hint) if isinstance(o, str)]) if isinstance(value, str) else ""
    return f"{field.name} = {value!r} is not allowed: it must be {allowed(field, hint)}.{close}"


def _options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _is_of(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return any(value == option and type(value) is type(option) for option in typing.get_args(hint))
    options = _options(hint)
    if len(options) > 1:
        return any(_is_of(value, option) for option in options)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    assert isinstance(hint, type), f"settings cannot hold {hint}"
    return isinstance(value, hint)


def _in_range(value: Any, field: "dataclasses.Field[Any]") -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    minimum, maximum, above = (field.metadata.get(key) for key in ("minimum", "maximum", "above"))
    return (
        (minimum is None or value >= minimum)
        and (maximum is None or value <= maximum)
        and (above is None or value > above)
    )


def _converted(value: Any, hint: Any) -> Any:
    """`value` as what `hint` asks for; ValueError if it is not that."""
    options = _options(hint)
    if len(options) > 1:
        for option in sorted(options, key=lambda option: option is str):  # text last: it takes anything
            try:
                return _converted(value, option)
            except ValueError:
                continue
        raise ValueError
    if _is_of(value, hint):
        return float(value) if hint is float else value
    if isinstance(value, str):
        return _from_text(value.strip(), hint)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError


def _from_text(text: str, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        for option in typing.get_args(hint):
            if text == str(option):
                return option
    elif hint is bool and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    elif hint is type(None) and text.lower() in _NONE:
        return None
    elif hint in (int, float):
        number = float(text)
        if math.isfinite(number):
            if hint is float:
                return number
            if number.is_integer():
                return int(text) if text.lstrip("+-").isdigit() else int(number)
    raise ValueError
