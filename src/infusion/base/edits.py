"""Reversible changes of a live network; leaving the `with` block undoes each exactly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from infusion.errors import UserError


def bare(network: nn.Module) -> nn.Module:
    """The network itself, for edits that need weights and layers of its own.

    Raises:
        UserError: LoRAs of another tool stand around its layers.
    """
    if any(hasattr(module, "base_layer") for module in network.modules()):
        raise UserError(
            "LoRAs of another tool are loaded into this model, and this method edits its own weights: unload or fuse "
            "other LoRAs first (pipe.unload_lora_weights(), after pipe.fuse_lora() where they are to stay in effect)."
        )
    return network


def all_or_nothing(weight: float) -> UserError:
    """For an edit that cannot act more or less strongly."""
    return UserError(f"A weight of {weight:g} needs a method that adds to values, such as infusion; give 1 or 0.")


@contextmanager
def hook_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`module` returns `change(output)` instead of its output."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def hook_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`module` is given `change(input)` instead of its first input."""
    handle = module.register_forward_pre_hook(lambda _module, inputs: (change(inputs[0]), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def wrap_method(owner: Any, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """`owner.name(...)` calls `wrapper(original_method, ...)`."""
    original = getattr(owner, name)
    was_own = name in vars(owner)  # accelerate's offloading leaves such an attribute; put it back

    def method(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(owner, name, method)
    try:
        yield
    finally:
        if was_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


@contextmanager
def swap_parameter(network: nn.Module, path: str, stand_in: Tensor) -> Iterator[None]:
    """`stand_in`, of the same shape, is used where the parameter at `path` was; the parameter is never written to."""
    parent, leaf = _parent(network, path)
    original = parent._parameters[leaf]
    assert original is not None and original.shape == stand_in.shape, path
    parent._parameters[leaf] = stand_in  # type: ignore[assignment]  # a dictionary: a plain tensor may stand in
    try:
        yield
    finally:
        parent._parameters[leaf] = original


@contextmanager
def wrap_module(network: nn.Module, path: str, wrapper: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
    """`wrapper(module)` stands where the module at `path` was."""
    parent, leaf = _parent(network, path)
    original = parent._modules[leaf]
    assert original is not None, path
    parent._modules[leaf] = wrapper(original)
    try:
        yield
    finally:
        parent._modules[leaf] = original


def _parent(network: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, leaf = path.rpartition(".")
    return network.get_submodule(parent), leaf
