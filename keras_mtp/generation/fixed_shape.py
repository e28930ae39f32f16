"""The shapes in which a row of a matrix product depends neither on its place nor on the other rows, to the last bit.

Kernels treat the rows that are left over from their blocks differently: torch's products over 5, 6 and 7 rows do, those over
2 and 3 on an AMD processor where the number of columns, the vocabulary's say, is no multiple of 4; and one row alone is
another kernel everywhere. Seen on JAX, TensorFlow and torch on CPUs; pinned by test_fixed_shape.py.
"""

import math

SMALL, BLOCK = 4, 8  # rows of a product: 4, or a multiple of 8


def fixed_shape(batch_size: int, tokens: int) -> tuple[int, int]:
    """Rows of a batch, and tokens per row, that a pass of exact mode is padded to.

    Args:
        batch_size: rows that are wanted. tokens: tokens per row that are wanted, K.

    Returns:
        `(B, R)`, neither smaller than what is wanted.
    """
    rows = next((b for b in (1, 2, 4) if b >= batch_size), -(-batch_size // BLOCK) * BLOCK)
    width = tokens
    while not (rows * width == SMALL or rows * width % BLOCK == 0):
        width += 1
    return rows, width


def fixed_multiple(width: int) -> int:
    """Of how many rows a batch must be a multiple, unless it is one row alone, where nothing is compiled for its size.

    Args:
        width: R, tokens per row, as `fixed_shape(1, K)` says; so one row is a fixed shape. Or 1: plain decoding, which is
            not exact and pads nothing.
    """
    return 1 if width == 1 else BLOCK // math.gcd(BLOCK, width)


def fixed_rows(batch_size: int, width: int) -> int:
    """The rows, at least `batch_size`, that a batch is padded to by that rule."""
    multiple = fixed_multiple(width)
    return 1 if batch_size <= 1 else -(-batch_size // multiple) * multiple
