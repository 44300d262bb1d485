"""Facts, a way to make tensors of them -> the tensors, made once: in memory, or in files that other processes read."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from infusion.files import whole_file


def digest(facts: Any) -> str:
    """16 hexadecimal digits that differ wherever the facts do. They are what JSON can say; ranges are lists."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_as_list).encode()).hexdigest()[:16]


def _as_list(value: object) -> list[Any]:
    if isinstance(value, range):
        return list(value)
    raise TypeError(f"{value!r} is no fact: a digest is of what JSON can say.")


class Store:
    """Tensors by their kind and by the facts that they depend on.

    folder: where they are kept, each as a whole file; None to keep them in memory. What else they depend on, such as
    the base model, the folder must stand for.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._in_memory: dict[str, dict[str, Tensor]] = {}

    def get(self, kind: str, facts: Any, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What `make` makes, or made before."""
        name = _name(kind, facts)
        if self.folder is None:
            if name not in self._in_memory:
                self._in_memory[name] = dict(make())
            return self._in_memory[name]
        path = self.folder / name
        if not path.exists():
            tensors = {key: tensor.contiguous() for key, tensor in make().items()}
            with whole_file(path) as temporary:
                save_file(tensors, temporary)
        return load_file(path)

    def has(self, kind: str, facts: Any) -> bool:
        """Whether it was made."""
        name = _name(kind, facts)
        return name in self._in_memory if self.folder is None else (self.folder / name).exists()

    def path(self, kind: str, facts: Any) -> Path:
        """Where it is kept, or would be."""
        assert self.folder is not None
        return self.folder / _name(kind, facts)


def _name(kind: str, facts: Any) -> str:
    return f"{kind}-{digest(facts)}.safetensors"
