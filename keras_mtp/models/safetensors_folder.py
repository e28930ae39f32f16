"""The weights of a Hugging Face folder: one safetensors file, or several and an index that says what is where.

Only names, shapes and types are read when a folder is opened; rows of a tensor come into memory when they are asked for. They
are read, not mapped: of a mapped file every page that was looked at counts as this process's memory.

Reference: the safetensors format, https://huggingface.co/docs/safetensors; transformers, `modeling_utils.py`.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from keras_mtp.models.json_file import parse_json, read_json
from keras_mtp.untrusted import is_plain_name, leads_out, open_plain

_LARGEST_HEADER = 16 << 20  # bytes; of 300 tensors it has 30,000
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_READABLE = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """Where a tensor lies, and as what."""

    path: Path
    start_byte: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, start: int, stop: int | None) -> np.ndarray:
        """Some of its rows."""
        count = len(range(self.shape[0])[start:stop])
        rows = np.empty((count, *self.shape[1:]), self.dtype)
        with self.path.open("rb") as stream:
            stream.seek(self.start_byte + start * math.prod(self.shape[1:]) * self.dtype.itemsize)
            if stream.readinto(rows.view("uint8").reshape(-1).data) != rows.nbytes:
                raise ValueError("the file has become shorter")
        return rows


class SafetensorsFolder:
    """The tensors of a folder.

    Args:
        folder: where the files lie.
        refuse: raises the folder's own error for a reason.

    Attributes:
        files: every file with tensors, and the index.
        shapes: each tensor's shape by its name.
    """

    def __init__(self, folder: Path, refuse: Callable[[str], NoReturn]) -> None:
        self._refuse = refuse
        single, index = folder / SINGLE, folder / INDEX
        if single.exists() and index.exists():
            refuse(f"it holds both {SINGLE} and {INDEX}, which may be two models; remove one")
        if not single.exists() and not index.exists():
            refuse(f"it has no {SINGLE}{_other_weights(folder)}")
        weight_map = _read_index(index, refuse) if index.exists() else None
        names = [SINGLE] if weight_map is None else sorted(set(weight_map.values()))
        for name in names:
            _check_inside(folder, name, refuse)
        self.files = (*(folder / name for name in names), *([index] if weight_map is not None else []))
        self._tensors: dict[str, _Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            self._open(folder / name)
        if weight_map is not None:
            self._check_index(weight_map)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """One tensor, or some of its rows, as float32."""
        try:
            return self._tensors[name].read(start, stop).astype("float32", copy=False)
        except (OSError, ValueError) as error:
            self._refuse(f"tensor {name} cannot be read: {error}")

    def _open(self, path: Path) -> None:
        first_byte, header = _check_header(path, self._refuse)
        try:
            with safe_open(path, framework="numpy") as file:  # which checks that the header fits the file
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, ValueError) as error:
            self._refuse(f"{path.name} is damaged or cut short: {error!s:.200}; download it again")
        for name, tensor in slices.items():
            if name in self.shapes:
                self._refuse(f"tensor {name!r:.80} is in two files")
            if (kind := tensor.get_dtype()) not in _READABLE:
                self._refuse(
                    f"tensor {name:.80} is stored as {kind}; only {', '.join(sorted(_READABLE))} can be read"
                )
            self.shapes[name] = tuple(tensor.get_shape())
            self._tensors[name] = _Tensor(
                path=path,
                start_byte=first_byte + header[name]["data_offsets"][0],
                shape=self.shapes[name],
                dtype=_READABLE[kind],
            )

    def _check_index(self, weight_map: dict[str, str]) -> None:
        for name in weight_map:
            if name not in self.shapes:
                self._refuse(
                    f"{INDEX} promises tensor {name:.80}, which {weight_map[name]:.80} does not hold"
                )
        for name in self.shapes:
            if name not in weight_map:
                self._refuse(f"tensor {name:.80} is not in {INDEX}")


def _read_index(path: Path, refuse: Callable[[str], NoReturn]) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        refuse(f"{INDEX} has no `weight_map` from tensor to file")
    return weight_map


def _check_header(path: Path, refuse: Callable[[str], NoReturn]) -> tuple[int, dict[str, Any]]:
    """Length and names, before the package `safetensors` reads them: of a name that stands there twice it takes the last.

    Returns:
        Where the tensors begin in the file, and the header.
    """
    with open_plain(path) as stream:
        (length,) = struct.unpack("<Q", stream.read(8).rjust(8, b"\xff"))
        if length > _LARGEST_HEADER:
            refuse(
                f"{path.name} is damaged or cut short: its header claims {length:,} bytes; download it again"
            )
        header = stream.read(length)
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(f"{path.name} is damaged or cut short: its header is not UTF-8 ({error}); download it again")
    if len(header) < length:
        refuse(f"{path.name} is damaged or cut short: its header ends too early; download it again")
    return 8 + length, parse_json(text, f"{path.parent.name}/{path.name}, its header,")


def _check_inside(folder: Path, name: str, refuse: Callable[[str], NoReturn]) -> None:
    """An index may name only files of its own folder, and those may not be links that lead out of it."""
    if not is_plain_name(name) or not name.endswith(".safetensors"):
        refuse(f"{INDEX} names {name!r:.80}, which is no safetensors file of this folder")
    if not (folder / name).is_file():
        refuse(f"{name:.80} is missing; download it again")
    if leads_out(folder / name, folder):
        refuse(f"{name:.80} is a link that leads out of the folder")


def _other_weights(folder: Path) -> str:
    for pattern in ("*.bin", "*.pth", "*.pt"):
        if found := sorted(path.name for path in folder.glob(pattern)):
            return (
                f", only {found[0]}: pickled weights can run code and are not read; save the model again with "
                "transformers' `save_pretrained`"
            )
    if (folder / "adapter_config.json").exists():
        return ", only an adapter; merge it into its base model first"
    return ""
