"""Positions with a label, a chunk of rows at a time: those without one (prompt, padding) are sorted to the end, and not reached.

B sequences of T tokens, N = B*T rows, C of them in a chunk, D hidden size.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_mtp import backend


def as_rows(y_true, y_pred, sample_weight):
    """(B, T, ...) -> N rows."""
    hidden = ops.convert_to_tensor(y_pred)
    hidden = ops.reshape(hidden, (-1, hidden.shape[-1]))
    targets = ops.reshape(ops.cast(y_true, "int32"), (-1,))
    return hidden, targets, ops.reshape(ops.cast(sample_weight, "float32"), (-1,))


class Chunk(NamedTuple):
    """C rows: their places (C,) among the N, hidden (C, D), targets (C,), weights (C,), and weights that add up: 0 for rows
    that the chunk before has had already."""

    index: Any
    hidden: Any
    targets: Any
    weights: Any
    new_weights: Any

    def put(self, values, new):
        """`values` (N, ...) with `new` (C, ...) in the rows' places; torch changes `values` itself."""
        return backend.put_rows(values, self.index, new)


class LabelledRows:
    """N rows in the order "with weight first", to be read `size` at a time.

    A last chunk that would run over the end begins earlier, and has rows of the one before once more: so what is made for
    a row goes straight to its place in N rows, and no second N x D tensor is needed to bring them back in order.
    """

    def __init__(self, hidden, targets, weights, size: int):
        self.count = ops.shape(hidden)[0]
        index = ops.arange(0, self.count, dtype="int32")
        unlabelled = ops.cast(weights <= 0, "int32")
        # A key without ties: the same order on every backend.
        self.order = ops.cast(ops.argsort(unlabelled * self.count + index), "int32")
        self.hidden, self.targets, self.weights = hidden, targets, weights
        self.size = min(size, self.count) if isinstance(self.count, int) else ops.minimum(size, self.count)
        self.chunks = (self.count - ops.sum(unlabelled) + self.size - 1) // self.size

    def chunk(self, i) -> Chunk:
        start = ops.minimum(i * self.size, self.count - self.size)
        index = ops.slice(self.order, [start], [self.size])
        hidden, targets, weights = (
            ops.take(x, index, axis=0) for x in (self.hidden, self.targets, self.weights)
        )
        new = start + ops.arange(0, self.size, dtype="int32") >= i * self.size
        return Chunk(index, hidden, targets, weights, weights * ops.cast(new, "float32"))
