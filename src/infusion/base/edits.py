"""Reversible changes of a live network; leaving the `with` block undoes each exactly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def hook_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """`module` returns `change(output)` instead of its output."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def wrap_forward(module: nn.Module, wrapper: Callable[..., Any]) -> Iterator[None]:
    """`module(...)` calls `wrapper(original_forward, ...)`."""
    original = module.forward
    was_own = "forward" in vars(module)  # accelerate's offloading leaves such an attribute; put it back

    def forward(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    module.forward = forward
    try:
        yield
    finally:
        if was_own:
            module.forward = original
        else:
            del module.forward
