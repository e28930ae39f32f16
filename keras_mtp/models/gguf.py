"""Reads the GGUF file format: metadata, and weights one at a time.

    "GGUF" | version | tensor count | key count | key, type, value ... | name, shape, type, offset ... | weights

The package `gguf` knows the quantised types and undoes them. Its own `GGUFReader` is not used: it makes an array of
every vocabulary entry (3 s and 170 MB on SmolLM2) and trusts the counts and lengths in the file. Here no byte is
read past the end, whatever the file claims, and what stands before the weights is bounded.

Reference: the GGUF specification, ggml, `docs/gguf.md`.
"""

import itertools
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np

from keras_mtp.errors import UserError
from keras_mtp.untrusted import open_plain

# The numbers a value may be, by its type in the file: `struct`'s letter for each.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_KINDS = {kind.value: kind for kind in gguf.GGML_QUANT_SIZES}
# Dequantising takes a few times the memory of its result, so a large matrix is done a slab of rows at a time.
_SLAB_WEIGHTS = 1 << 18
# What a Llama stays below many times over: Llama 3's file has 8 MB before its weights, 280,000 merges, 292 tensors.
_HEADER_BYTES, _ARRAY_ITEMS, _ENTRIES = 64 << 20, 1 << 22, 1 << 16


class _Damaged(Exception):
    """The bytes are not what the format asks for."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """Where a tensor lies in the file, and as what. `shape` is NumPy's: rows first."""

    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    start_byte: int
    row_bytes: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes


class GGUFFile:
    """One opened file; weights are read when `read` asks for them.

    Args:
        path: the file.

    Attributes:
        metadata: dict of everything the file says about itself, as Python values.
        shapes: dict from each tensor's name to its shape, (out, in) for a matrix.

    Raises:
        UserError: the file is damaged or cut short, or not GGUF at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_plain(path) as stream:
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self.metadata, self._entries = _parse(self._bytes)
        except (
            _Damaged,
            ValueError,
            OSError,
        ) as error:  # ValueError: an empty file, a text that is not UTF-8
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{path.name} is not a whole GGUF file: {reason}. Download it again.") from error
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a metadata key, checked to be of a type; `default` where the file has no such key."""
        value = self.metadata.get(key, default)
        if key in self.metadata and type(value) is not kind:
            self.refuse(f"`{key}` must be of type {kind.__name__}, but is {value!r:.40}")
        return value

    def need(self, key: str, kind: type) -> Any:
        """Like `get`, for a key that must be there."""
        if key not in self.metadata:
            self.refuse(f"it has no `{key}`")
        return self.get(key, kind)

    def expect(self, key: str, wanted: str) -> None:
        """Refuses the file unless a metadata key has this value."""
        value = self.need(key, str)
        if value != wanted:
            self.refuse(f"`{key}` must be {wanted!r}, but is {value!r}")

    def refuse(self, reason: str) -> NoReturn:
        """Raises the error for a file that is whole but cannot be used."""
        raise UserError(f"{self.path.name} cannot be loaded: {reason}. Use a plain Llama, whole, as GGUF.")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """One weight, or some of its rows, as float32; a vector is one row."""
        entry = self._entries[name]
        rows = range(math.prod(entry.shape[:-1]))[start:stop]
        first = entry.start_byte + rows.start * entry.row_bytes
        stored = np.frombuffer(self._bytes, "uint8", len(rows) * entry.row_bytes, first)
        stored = stored.reshape(len(rows), entry.row_bytes)
        weight = np.empty((len(rows), entry.shape[-1]), "float32")
        slab = max(1, _SLAB_WEIGHTS // entry.shape[-1])
        for row in range(0, len(rows), slab):
            try:
                with np.errstate(
                    all="ignore"
                ):  # values that are no numbers are refused by who takes the weight
                    weight[row : row + slab] = gguf.quants.dequantize(stored[row : row + slab], entry.kind)
            except NotImplementedError:
                self.refuse(f"tensor {name:.80} is stored as {entry.kind.name}, which cannot be read")
        self._forget(first, first + stored.size)
        return weight.reshape(-1, *entry.shape[1:]) if len(entry.shape) > 1 else weight[0]

    def _forget(self, start: int, stop: int) -> None:
        """Lets the system take back the memory that these bytes have been read into: it would count as this process's."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start -= start % mmap.PAGESIZE
            self._bytes.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _parse(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, _Entry]]:
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF":
        raise _Damaged("it does not begin with GGUF")
    version, tensor_count, key_count = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in (2, 3):
        raise _Damaged(f"its version is {version}, not 2 or 3 little-endian")
    metadata: dict[str, Any] = {}
    for _ in _counted(key_count, "keys"):
        key = cursor.text()
        if key in metadata:
            raise _Damaged(f"the key {key!r:.80} stands there twice")
        metadata[key] = cursor.value(cursor.number("I"))
    headers = [_tensor_header(cursor) for _ in _counted(tensor_count, "tensors")]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise _Damaged(f"its alignment is {alignment!r:.40}, no power of two")
    start = -(-cursor.position // alignment) * alignment
    entries: dict[str, _Entry] = {}
    for name, shape, kind, offset in headers:
        if name in entries:
            raise _Damaged(f"two tensors have the name {name!r:.80}")
        if offset % alignment:
            raise _Damaged(f"tensor {name!r:.80} begins at {offset}, which is no multiple of {alignment}")
        entries[name] = _entry(name, shape, kind, start + offset, len(data))
    _refuse_overlaps(entries)
    return metadata, entries


def _counted(count: int, what: str) -> range:
    if count > _ENTRIES:
        raise _Damaged(f"it claims {count} {what}, more than {_ENTRIES}, or it ends too early")
    return range(count)


def _refuse_overlaps(entries: dict[str, _Entry]) -> None:
    """A byte that belongs to two tensors is no damage by chance."""
    placed = sorted(entries.items(), key=lambda item: item[1].start_byte)
    for (name, entry), (other, following) in itertools.pairwise(placed):
        if entry.start_byte + entry.bytes > following.start_byte:
            raise _Damaged(f"tensors {name!r:.80} and {other!r:.80} overlap")


def _tensor_header(cursor: "_Cursor") -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.text(), cursor.number("I")
    if not 1 <= dimensions <= 4:
        raise _Damaged(f"tensor {name!r:.80} has {dimensions} dimensions")
    # The format counts the fastest dimension first.
    shape = tuple(reversed([cursor.number("Q") for _ in range(dimensions)]))
    return name, shape, cursor.number("I"), cursor.number("Q")


def _entry(name: str, shape: tuple[int, ...], kind: int, start_byte: int, file_bytes: int) -> _Entry:
    if kind not in _KINDS:
        raise _Damaged(f"tensor {name!r:.80} is stored as type {kind}, which is none")
    stored_as = _KINDS[kind]
    block_weights, block_bytes = gguf.GGML_QUANT_SIZES[stored_as]
    if 0 in shape or shape[-1] % block_weights:
        raise _Damaged(f"tensor {name!r:.80} of shape {shape} cannot be stored as {stored_as.name}")
    row_bytes = shape[-1] // block_weights * block_bytes
    entry = _Entry(kind=stored_as, shape=shape, start_byte=start_byte, row_bytes=row_bytes)
    if start_byte + entry.bytes > file_bytes:
        raise _Damaged(f"tensor {name!r:.80} goes on past its end, its last bytes are missing")
    return entry


class _Cursor:
    """Reads values one after the other, and never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._end = data, min(len(data), _HEADER_BYTES)
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > self._end:
            raise _Damaged("it ends too early" if end > len(self._data) else "it says too much about itself")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        if kind not in _NUMBERS:
            raise _Damaged(f"it holds a value of type {kind}")
        return self.number(_NUMBERS[kind])

    def _array(self, kind: int, count: int) -> list[Any]:
        if count > _ARRAY_ITEMS:
            raise _Damaged(f"it ends too early, or an array of {count} is more than any Llama has")
        if kind in _NUMBERS:
            letter = _NUMBERS[kind]
            return list(struct.unpack(f"<{count}{letter}", self.take(count * struct.calcsize("<" + letter))))
        if kind != _STRING:
            raise _Damaged(f"it holds an array of type {kind}")
        return [self.text() for _ in range(count)]
