"""A file of another tool, hostile until read -> its tensors by name, and what it says of itself; no code of it runs."""

import json
import math
import pickle
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from infusion.errors import UserError, first_line

MAX_HEADER_BYTES = 32 * 2**20
MAX_TENSORS = 50_000
MAX_PICKLE_BYTES = 16 * 2**20  # of the index of a torch file; its numbers lie beside it
MAX_TORCH_FILE_BYTES = 8 * 2**30
MAX_NAME_LENGTH = 500
_MAX_DEPTH = 3
_MAX_DIMENSIONS = 8
SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".pt", ".bin", ".pth")

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
_BITS |= {"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8}
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file by shape, read when asked for.

    shapes: by name. metadata: what a .safetensors file says of itself, or the plain values beside the tensors of a
    torch file; strings, hostile as the rest.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    held: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def tensors(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The tensors of the given names, or all of them; on the CPU.

        Raises:
            UserError: one holds numbers that are not finite, or the file changed since it was looked at.
        """
        names = self.shapes if names is None else names
        found = {name: self.held[name] for name in names} if self.held else self._read(names)
        for name, tensor in found.items():
            if tensor.is_floating_point() and not tensor.float().isfinite().all():
                raise UserError(
                    f'{self.path} is broken: its tensor "{shown(name)}" holds numbers that are not finite (an overflow '
                    "in training, mostly); take an earlier checkpoint, or a copy that is whole."
                )
        return found

    def _read(self, names: Collection[str]) -> dict[str, Tensor]:
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            raise _unreadable(self.path, first_line(error)) from error


def read_tensor_file(path: Path) -> TensorFile:
    """What is in a weight file; of a .safetensors file the header alone is read.

    Raises:
        UserError: it is not there, is malformed, larger than the constants above allow, or would have to run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
    if path.suffix.lower() == SAFETENSORS:
        return _safetensors(path, start)
    if path.suffix.lower() in TORCH_SUFFIXES:
        return _torch_file(path, start)
    raise UserError(f"{path} is no weight file: {SAFETENSORS} and {', '.join(TORCH_SUFFIXES)} files are read.")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file beside weights.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise UserError(f"{path} is too large to describe a model ({path.stat().st_size:,} bytes).")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({first_line(error)}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object, as it should.")
    return found


def as_object(text: str | None) -> dict[str, Any]:
    """The object in a JSON text; an empty one where there is none."""
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def shown(text: object, length: int = 80) -> str:
    """Foreign text as it may stand in a sentence or on a page: one line, printable, not longer than `length`."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(text)[: 4 * length])
    line = " ".join(line.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(f"{path} cannot be read as a weight file: {shown(why, 200)}.")


# --- .safetensors ---


def _safetensors(path: Path, start: bytes) -> TensorFile:
    file_bytes = path.stat().st_size
    header_bytes = int.from_bytes(start, "little")
    if len(start) < 8 or header_bytes > file_bytes - 8:
        raise _unreadable(path, "it is cut off, or no .safetensors file at all")
    if header_bytes > MAX_HEADER_BYTES:
        raise _unreadable(path, f"its header claims {header_bytes:,} bytes, and {MAX_HEADER_BYTES:,} are allowed")
    with path.open("rb") as file:
        file.seek(8)
        text = file.read(header_bytes)
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _unreadable(path, "its header is no JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _unreadable(path, "its metadata are no JSON object")
    if len(header) > MAX_TENSORS:
        raise _unreadable(path, f"it claims {len(header):,} tensors, and {MAX_TENSORS:,} are allowed")
    shapes = {name: _shape(path, name, entry, file_bytes - 8 - header_bytes) for name, entry in header.items()}
    return TensorFile(path, shapes, {str(key): str(value) for key, value in metadata.items()})


def _shape(path: Path, name: str, entry: Any, data_bytes: int) -> tuple[int, ...]:
    """The shape that a header declares, which must be that of the bytes it points at."""
    if isinstance(entry, dict) and len(name) <= MAX_NAME_LENGTH:
        dtype, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if isinstance(dtype, str) and dtype in _BITS and _are_counts(shape) and _are_counts(span) and len(span) == 2:
            num_bytes = math.prod(shape[:_MAX_DIMENSIONS]) * _BITS[dtype] // 8
            if len(shape) <= _MAX_DIMENSIONS and span[1] - span[0] == num_bytes and span[1] <= data_bytes:
                return tuple(shape)
    raise _unreadable(path, f'the entry of its tensor "{shown(name)}" is malformed')


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**60 for number in value)


# --- torch's own files: a zip of numbers, and a pickle that says what they are ---


def _torch_file(path: Path, start: bytes) -> TensorFile:
    if not start.startswith(b"PK"):
        raise _unreadable(
            path, "it is no torch file of torch 1.6 or later; load and save it again with a current torch"
        )
    if path.stat().st_size > MAX_TORCH_FILE_BYTES:
        raise _unreadable(path, f"it is larger than {MAX_TORCH_FILE_BYTES:,} bytes; convert it to .safetensors")
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Unpickler(_Archive(archive)).load()
        tensors, values = _flattened(content)
    except Exception as error:  # a pickle can stumble in every way there is; none of them runs code of the file
        raise _unreadable(path, first_line(error)) from error
    return TensorFile(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, values, tensors)


def _flattened(content: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the plain values in dictionaries, by keys joined with dots; a bare tensor is called ""."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, str] = {}
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    for _ in range(4 * MAX_TENSORS):
        if not waiting:
            return tensors, values
        name, thing, depth = waiting.pop()
        if isinstance(thing, _Kept):
            thing = thing.state.get("_parameters") or thing.state
        if isinstance(thing, _Rebuilt) and isinstance(thing.tensor, Tensor):
            tensors[name] = thing.tensor
        elif isinstance(thing, str | float) or (isinstance(thing, int) and thing.bit_length() < 64):
            values[name] = str(thing)[:MAX_NAME_LENGTH]
        elif isinstance(thing, dict) and depth < _MAX_DEPTH:
            joined = f"{name}." if name else ""
            keys = [key for key in thing if isinstance(key, str) and len(key) <= MAX_NAME_LENGTH]
            waiting += [(joined + key, thing[key], depth + 1) for key in reversed(keys)]
    raise ValueError("it holds too many things")


class _Archive:
    """The entries of a torch file, none of them compressed: so there can be no more in it than the file is long."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) > MAX_TENSORS:
            raise ValueError(f"it has {len(entries):,} entries, and {MAX_TENSORS:,} are allowed")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries.values()):
            raise ValueError("it is compressed or encrypted, as torch's files never are")
        if sum(entry.file_size for entry in entries.values()) > MAX_TORCH_FILE_BYTES:
            raise ValueError("its entries overlap")
        indices = [name for name in entries if name.endswith("/data.pkl")]
        if len(indices) != 1:
            raise ValueError("it is a zip file, but not one of torch's")
        if entries[indices[0]].file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its index is larger than {MAX_PICKLE_BYTES:,} bytes")
        self.index = archive.read(indices[0])
        self._archive = archive
        self._folder = indices[0].removesuffix("data.pkl")
        byte_order = f"{self._folder}byteorder"
        if byte_order in entries and archive.read(byte_order).strip() != b"little":
            raise ValueError("its numbers are not little-endian")

    def numbers(self, key: str, dtype: torch.dtype) -> Tensor:
        """One entry as a flat tensor."""
        data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
        count = len(data) // dtype.itemsize
        return torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


class _Unpickler(pickle._Unpickler):
    """Python's own reader of pickles, which finds nothing but tensors and dictionaries.

    Not the C one: that sets memory aside for as many objects as a pickle says it will number.
    """

    def __init__(self, archive: _Archive) -> None:
        super().__init__(BytesIO(archive.index))
        self._archive = archive
        self._storages: dict[tuple[str, torch.dtype], _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        raise ValueError(f"it asks for {shown(module)}.{shown(name)}, and only tensors and dictionaries are read")

    def persistent_load(self, told: Any) -> "_Storage":
        kind, dtype, key = told[:3]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError("its index is malformed")
        if (key, dtype) not in self._storages:
            self._storages[key, dtype] = _Storage(self._archive.numbers(key, dtype))
        return self._storages[key, dtype]


# What a pickle handles stands in slots or keeps its state to itself, so that no pickle changes anything but its own.


class _Storage:
    __slots__ = ("numbers",)

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers


class _Rebuilt:
    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Dictionary(dict[Any, Any]):
    def __setstate__(self, state: Any) -> None:
        """What a module's state_dict carries beside its tensors is not needed."""


class _Kept:
    """Where a pickle asks for an object that only keeps tensors, a ParameterDict: what it keeps."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Unused:
    """Where a pickle asks for an object whose contents do not matter, a set of keys: nothing."""

    __slots__ = ()

    def __init__(self, *_: Any) -> None:
        pass


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Rebuilt:
        numbers = storage.numbers
        if not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
            raise ValueError("the shape of a tensor is malformed")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) > len(numbers) or (math.prod(size) and last >= len(numbers)):
            raise ValueError("a tensor is larger than its numbers")
        return _Rebuilt(torch.as_strided(numbers, size, stride, offset).clone() if math.prod(size) else numbers[:0])


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, rebuilt: Any, *_: Any) -> Any:
        return rebuilt


_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch.nn.modules.container", "ParameterDict"): _Kept,
    ("builtins", "set"): _Unused,
    ("__builtin__", "set"): _Unused,
}
