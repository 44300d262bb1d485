"""Settings: one dataclass, every face of it checked."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from infusion.errors import UserError
from infusion.settings import from_mapping, parse, setting, validate


@dataclass(frozen=True)
class Recipe:
    layers: Literal["all", "decoder"] = setting("all", help="Which layers learn.")
    learning_rate: float = setting(0.01, help="Step size.", above=0)
    max_train_steps: int = setting(500, help="How long.", minimum=1, maximum=1000)
    flip: bool = setting(True, help="Mirror images.")
    warmup: int | None = setting(None, help="Steps of warming up.", minimum=1)
    note: str = setting("", help="Anything.")

    def __post_init__(self) -> None:
        validate(self)
        if self.warmup and self.warmup > self.max_train_steps:
            raise UserError(f"warmup = {self.warmup} is more than max_train_steps = {self.max_train_steps}.")


@dataclass(frozen=True)
class Machine:
    seed: int = setting(0, help="Seed.", minimum=0)


def test_nothing_given_is_the_default() -> None:
    assert from_mapping(Recipe, {}) == Recipe()


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("layers", "decoder", "decoder"),
        ("learning_rate", 1, 1.0),
        ("learning_rate", "1e-3", 0.001),
        ("max_train_steps", "20", 20),
        ("max_train_steps", 20.0, 20),
        ("max_train_steps", "1e2", 100),
        ("flip", "false", False),
        ("flip", False, False),
        ("warmup", 3, 3),
        ("warmup", "3", 3),
        ("warmup", "none", None),
        ("note", "12", "12"),
    ],
)
def test_values_and_their_text(name: str, given: Any, taken: Any) -> None:
    value = getattr(from_mapping(Recipe, {name: given}), name)
    assert value == taken and type(value) is type(taken)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("layers", "decodr", 'must be one of "all", "decoder". Did you mean "decoder"?'),
        ("layers", 3, 'must be one of "all", "decoder".'),
        ("learning_rate", 0, "must be a number above 0."),
        ("learning_rate", "nan", "must be a number above 0."),
        ("learning_rate", float("inf"), "must be a number above 0."),
        ("learning_rate", True, "must be a number"),
        ("max_train_steps", 0, "must be a whole number of at least 1 and of at most 1000."),
        ("max_train_steps", 1001, "of at most 1000."),
        ("max_train_steps", 1.5, "must be a whole number"),
        ("max_train_steps", True, "must be a whole number"),
        ("max_train_steps", None, "must be a whole number"),
        ("max_train_steps", [1], "must be a whole number"),
        ("flip", "perhaps", "must be true or false."),
        ("flip", 1, "must be true or false."),
        ("warmup", "soon", 'must be a whole number of at least 1 or "none".'),
        ("warmup", 0, "must be a whole number of at least 1"),
        ("note", 3, "must be a text."),
    ],
)
def test_what_is_not_allowed(name: str, given: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(Recipe, {name: given})
    assert str(caught.value).startswith(f"{name} = {given!r} is not allowed: it ")
    assert words in str(caught.value)


def test_an_unknown_setting_has_a_nearest_name() -> None:
    with pytest.raises(UserError, match=r'Unknown setting "learning_rat". Did you mean "learning_rate"\? There are'):
        from_mapping(Recipe, {"learning_rat": 1})


def test_all_mistakes_at_once_and_across_classes() -> None:
    given = {"learning_rate": -1, "flip": "maybe", "sede": 1, "seed": -1}
    with pytest.raises(UserError) as caught:
        parse(given, Recipe, Machine)
    text = str(caught.value)
    assert text.startswith("4 mistakes in the settings:\n")
    assert all(word in text for word in ("learning_rate = -1", "flip = 'maybe'", '"sede"', '"seed"', "seed = -1"))


def test_values_that_do_not_go_together() -> None:
    with pytest.raises(UserError, match="warmup = 20 is more than max_train_steps = 10"):
        from_mapping(Recipe, {"warmup": 20, "max_train_steps": 10})
    with pytest.raises(UserError, match="2 mistakes"):
        parse({"warmup": 20, "max_train_steps": 10, "seed": -1}, Recipe, Machine)


def test_one_mapping_for_two_classes() -> None:
    recipe, machine = parse({"seed": 3, "flip": False}, Recipe, Machine)
    assert (recipe, machine) == (Recipe(flip=False), Machine(seed=3))


def test_python_callers_are_checked_too() -> None:
    with pytest.raises(UserError, match="2 mistakes"):
        Recipe(learning_rate=-1.0, max_train_steps="many")  # type: ignore[arg-type]
    assert Recipe(learning_rate=1).learning_rate == 1
