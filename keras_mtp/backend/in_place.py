"""Tensors that torch makes in memory that is there already; to the other backends a result is a tensor of its own."""


def from_numpy(array):
    """A tensor of an array, which must not be changed afterwards: torch takes its memory over, bfloat16 too."""
    import keras

    if keras.config.backend() != "torch":
        return keras.ops.convert_to_tensor(array)
    import numpy as np
    import torch
    from keras.src.backend.torch.core import get_device, to_torch_dtype

    bits = np.ascontiguousarray(array)
    if array.dtype == "bfloat16":
        bits = bits.view("int16")
    return torch.from_numpy(bits).view(to_torch_dtype(array.dtype.name)).to(get_device())


def exp_of_difference(a, b):
    """`exp(a - b)`; torch, which would hold three tensors of that size, makes it in `a`, not to be used again.

    Args:
        a: (N, M). b: (N, 1).
    """
    import keras
    from keras import ops

    if keras.config.backend() == "torch":
        return a.sub_(b).exp_()
    return ops.exp(a - b)


def scaled_once(gradient, factor):
    """`gradient * factor`, for a gradient that was made ahead of the backward pass; torch makes it in `gradient`.

    torch keeps `gradient` until the whole graph is freed: a product beside it would cost every head its size again.

    Raises:
        RuntimeError: torch, a second backward pass through the same graph.
    """
    import keras

    if keras.config.backend() != "torch":
        return gradient * factor
    if getattr(gradient, "is_scaled", False):
        raise RuntimeError(
            "This loss allows one backward pass: it scales its gradient in place. Compute it again."
        )
    gradient.is_scaled = True
    return gradient.mul_(factor)
