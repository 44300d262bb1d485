"""A network + the place where two calls of it first differ -> the second call begins with the first one's results."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from infusion.base.edits import wrap_method


class SharedStart:
    """What the modules of a network give before the one at `path` is reached, kept and given again.

    Between `keep` or `give` and `reached`, the modules beside the way to `path` are called in an order that is the same
    in every call of the network, so that their results are kept as a plain queue.
    """

    def __init__(self) -> None:
        self._kept: deque[Any] = deque()
        self._selected: Callable[[Any], Any] | None = None
        self._given: deque[Any] = deque()

    @contextmanager
    def attached(self, network: nn.Module, path: str) -> Iterator[None]:
        with ExitStack() as stack:
            for module in _beside(network, path):
                stack.enter_context(wrap_method(module, "forward", self._forward))
            yield

    def keep(self, results: deque[Any], selected: Callable[[Any], Any]) -> None:
        """From here on `results` is filled, as `selected` takes them from a module's output."""
        results.clear()
        self._kept, self._selected = results, selected

    def give(self, results: deque[Any]) -> None:
        """From here on modules are not run: each takes its result out of `results`, while there are any."""
        self._given = results

    def reached(self) -> None:
        """From here on the calls differ."""
        self._selected = None
        self._given = deque()

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._given:
            return self._given.popleft()
        output = original(*args, **kwargs)
        if self._selected:
            self._kept.append(self._selected(output))
        return output


def _beside(network: nn.Module, path: str) -> Iterator[nn.Module]:
    """The largest modules that do not hold the one at `path`."""
    parent = network
    for name in path.split("."):
        for other, child in parent.named_children():
            if other != name:
                yield from child if isinstance(child, nn.ModuleList) else (child,)
        parent = parent.get_submodule(name)
