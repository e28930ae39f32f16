"""Attention over as much of a cache as is filled, in chunks whose sums are added up one after another.

A chunk that a row may not look at leaves that row's result as it is, to the last bit: its weights are exact zeros. So a
row depends neither on how long its neighbours are nor on how much room the cache has, and a pass costs what is filled.

B rows of the batch, R new tokens per row, S slots, H key-value heads, G query heads per key-value head, E head size.
"""

import keras
from keras import ops

from keras_mtp.at_once import CHUNK
from keras_mtp.generation.fixed_shape import BLOCK
from keras_mtp.layers.block import fold_groups, unfold_groups

NOT_SEEN = -1e9


def attend_filled(query, keys, values, positions, scale: float):
    """Causal attention over a cache; softmax and sums in float32.

    Args:
        query: (B, R, H*G, E), rotated. keys, values: (B, H, S, E), S a multiple of `CHUNK`; a token is in the slot of
            its position.
        positions: int tensor (B, R), of the new tokens. scale: usually 1 / sqrt(E).

    Returns:
        (B, R, H*G, E).
    """
    new, heads = query.shape[1], keys.shape[1]
    groups = query.shape[2] // heads
    query = fold_groups(query * scale, heads)
    # The last slot that each row of `query` may look at.
    last = ops.tile(positions, (1, groups))[:, None, :, None]
    if new > 1:  # fixed_shape.py says why
        query, last = _padded(query, 2), _padded(last, 2)
    if keras.config.backend() == "torch":
        total, attended = _all_chunks(query, keys, values, last)
    else:
        total, attended = _in_a_loop(query, keys, values, last, ops.max(positions) // CHUNK + 1)
    return unfold_groups(ops.cast(attended / total, query.dtype)[:, :, : groups * new], groups)


def _in_a_loop(query, keys, values, last, filled):
    """(sums of the weights (B, H, rows, 1), weighted sums of values (B, H, rows, E)) over so many chunks."""
    batch_size, heads, rows, head_dim = ops.shape(query)

    def chunk(i, largest, total, attended):
        start = [0, 0, i * CHUNK, 0]
        key = ops.slice(keys, start, (batch_size, heads, CHUNK, head_dim))
        value = ops.slice(values, start, (batch_size, heads, CHUNK, head_dim))
        scores = ops.cast(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))), "float32")
        scores = ops.where(i * CHUNK + ops.arange(CHUNK, dtype="int32") <= last, scores, NOT_SEEN)
        new_largest = ops.maximum(largest, ops.max(scores, axis=-1, keepdims=True))
        weights, before = ops.exp(scores - new_largest), ops.exp(largest - new_largest)
        total = total * before + ops.sum(weights, axis=-1, keepdims=True)
        here = ops.cast(ops.matmul(ops.cast(weights, value.dtype), value), "float32")
        return new_largest, total, attended * before + here

    size = (batch_size, heads, rows)
    nothing = (
        ops.full((*size, 1), NOT_SEEN, "float32"),
        ops.zeros((*size, 1), "float32"),
        ops.zeros((*size, head_dim), "float32"),
    )
    return ops.fori_loop(0, filled, lambda i, sums: chunk(i, *sums), nothing)[1:]


def _all_chunks(query, keys, values, last):
    """The same where every operation costs, and `Cache.filled` has left nothing out: all chunks in each of them."""
    batch_size, heads, rows, head_dim = query.shape
    slots = keys.shape[2]
    scores = ops.matmul(query, ops.transpose(keys, (0, 1, 3, 2)))
    scores = ops.where(ops.arange(slots, dtype="int32") <= last, ops.cast(scores, "float32"), NOT_SEEN)
    weights = ops.exp(scores - ops.max(scores, axis=-1, keepdims=True))
    weights = ops.transpose(ops.reshape(weights, (batch_size, heads, rows, -1, CHUNK)), (0, 1, 3, 2, 4))
    value = ops.reshape(values, (batch_size, heads, -1, CHUNK, head_dim))
    attended = ops.cast(ops.matmul(ops.cast(weights, value.dtype), value), "float32")
    # One after another: torch's sum groups its terms by their number.
    return [ops.cumsum(x, axis=2)[:, :, -1] for x in (ops.sum(weights, axis=-1, keepdims=True), attended)]


def _padded(x, axis: int):
    missing = -x.shape[axis] % BLOCK
    return ops.pad(x, [(0, missing if i == axis else 0) for i in range(len(x.shape))]) if missing else x
