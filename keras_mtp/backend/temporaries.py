"""Matrices that are there for a moment: made in pieces, and not before they are needed."""

from collections.abc import Callable, Sequence

LARGE_MATRIX, SLAB = 1 << 26, 1 << 22  # numbers


def in_slabs(make: Callable, parts: Sequence, axis: int):
    """`make(*parts)`, a matrix of its first part's shape; on torch a large one some rows or columns at a time.

    torch would make several of its size on the way, where XLA makes none and TensorFlow reuses the first.

    Args:
        make: gives the matrix, and of a part of the parts that part of it. axis: along which they are cut, their last where they
            have no such axis.
    """
    import keras

    first = parts[0]
    size = first.shape[axis]
    if keras.config.backend() != "torch" or first.numel() < LARGE_MATRIX:
        return make(*parts)
    step, whole = -(-size * SLAB // first.numel()), None
    for start in range(0, size, step):
        count = min(step, size - start)
        piece = make(*(part.narrow(min(axis, part.ndim - 1), start, count) for part in parts))
        if whole is None:
            shape = list(piece.shape)
            shape[axis] = size
            whole = piece.new_empty(shape)
        whole.narrow(axis, start, count).copy_(piece)
    return whole


def not_before(x, parts: Sequence) -> Sequence:
    """`parts`, tensors, of which nothing is made before `x` is there. torch works in order anyway."""
    import keras

    name = keras.config.backend()
    if name == "jax":
        import jax

        if jax.default_backend() == "cpu":  # XLA drops barriers there before it looks for what is made twice
            none = x[(0,) * x.ndim] > jax.numpy.inf  # never true, which XLA cannot know
            return tuple(part + none.astype(part.dtype) for part in parts)
        return jax.lax.optimization_barrier((tuple(parts), x))[0]
    if name == "tensorflow":
        import tensorflow as tf

        with tf.control_dependencies([x]):
            return tuple(tf.identity(part) for part in parts)
    return parts
