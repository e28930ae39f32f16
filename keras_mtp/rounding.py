"""Weights rounded to int8 and int4 as Keras does it, in NumPy and some rows at a time.

    int8    W = values / scale              a scale for every output; values from -127 to 127
    int4    W = (values - zero) * scale     both for every output and `BLOCK` inputs; values from -8 to 7, two in a byte

Keras' own functions take a whole matrix and make several of its size; a row of a file is all that a scale depends on. That the
same numbers come out, test_filling.py shows. R inputs, C outputs, G groups of inputs that share a scale.

Reference: Keras, `quantizers/quantizers.py`, `abs_max_quantize` and `abs_max_quantize_grouped_with_zero_point`.
"""

from typing import NamedTuple

import numpy as np

from keras_mtp.at_once import INT4_BLOCK as BLOCK

MODES = ("int8", "int4")
_EPSILON = np.float32(1e-7)  # Keras': keeps a row of zeros from a division by zero


class Stored(NamedTuple):
    """What Keras keeps of a matrix, here as NumPy arrays.

    Args:
        values: int8 (C, R); in int4 two neighbours' along C, the first one's in the low half: (C / 2, R).
        scale: float32 (C, 1), or (C, G) in int4. zero: int8 (C, G) in int4, else None.
    """

    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None


def quantise(rows: np.ndarray, mode: str) -> Stored:
    """Rounds some outputs' weights as Keras does, values not packed yet.

    Args:
        rows: float32 (C, R), as files hold a matrix: a row for every output. mode: of `MODES`.
    """
    if mode == "int8":
        scale = 127 / (np.abs(rows).max(1, keepdims=True) + _EPSILON)
        return Stored(np.clip(np.round(rows * scale), -127, 127).astype("int8"), scale, None)
    count, inputs = rows.shape
    groups = -(-inputs // BLOCK)
    grouped = np.pad(rows, ((0, 0), (0, groups * BLOCK - inputs))).reshape(count, groups, BLOCK)
    smallest, largest = grouped.min(2), grouped.max(2)
    scale = (largest - smallest + _EPSILON) / 15
    zero = np.clip(np.round(-smallest / scale) - 8, -8, 7)
    values = np.clip(np.round(grouped / scale[..., None]) + zero[..., None], -8, 7)
    return Stored(values.reshape(count, -1)[:, :inputs].astype("int8"), scale, zero.astype("int8"))


def restored(stored: Stored) -> np.ndarray:
    """The float32 rows that unpacked values stand for."""
    values, scale, zero = stored
    if zero is None:
        return values / scale
    spread = [np.repeat(each, BLOCK, axis=1)[:, : values.shape[1]] for each in (zero, scale)]
    return (values - spread[0].astype("float32")) * spread[1]


def packed(values: np.ndarray, axis: int) -> np.ndarray:
    """int4 values, each in a byte of its own, two in a byte along an axis; an odd one is packed with a zero."""
    values = np.moveaxis(values, axis, 0)
    if len(values) % 2:
        values = np.concatenate([values, np.zeros_like(values[:1])])
    return np.moveaxis((values[::2] & 15) | (values[1::2] << 4), 0, axis)
