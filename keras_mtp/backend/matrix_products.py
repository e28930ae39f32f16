"""Matrix products: without a copy of what is transposed, fast for few rows, and without keeping a matrix that can be made again."""

from collections.abc import Callable, Sequence

from keras_mtp.backend.temporaries import not_before

FEW = 64  # rows of a product for which reading the matrix is most of the time


def matmul(a, b, *, transpose_b: bool = False):
    """`a @ b`, or `a @ b.T` without a copy of `b`, which TensorFlow's transpose and torch's einsum would make.

    Args:
        a: (..., N, K). b: (K, M), or (M, K) with `transpose_b`.
    """
    import keras

    if keras.config.backend() == "torch" and (parts := _torch_parts(a, b)):
        rows = _torch_few_rows(a.reshape(-1, a.shape[-1]), b, parts, transpose_b)
        return rows.reshape(*a.shape[:-1], -1)
    if transpose_b and keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.matmul(a, b, transpose_b=True)
    return keras.ops.matmul(a, keras.ops.transpose(b) if transpose_b else b)


def _torch_parts(a, b) -> int:
    """In how many parts torch should be asked for a product; 0 where it should be asked for the whole.

    On a CPU MKL reads a float32 matrix for few rows with one thread or as slowly as with one: 14 of 28 GB/s for one row of
    576 x 1536, 6 for four. In parts, a thread for each, 22 and 10. bfloat16 has kernels that are best left alone.
    """
    import torch

    if torch.compiler.is_compiling() or a.numel() > FEW * a.shape[-1]:
        return 0
    parts = torch.get_num_threads()
    whole = parts == 1 or a.shape[-1] % parts or len(b) % parts
    return 0 if whole or b.dtype != torch.float32 or b.device.type != "cpu" else parts


def _torch_few_rows(a, b, parts: int, transpose_b: bool):
    """Each row's result depends neither on its place nor on its neighbours; test_fixed_shape.py pins it."""
    import torch

    if not transpose_b:  # a part of what is summed over for each thread
        return torch.bmm(a.unflatten(1, (parts, -1)).transpose(0, 1), b.unflatten(0, (parts, -1))).sum(0)
    if len(a) > 1:
        return (b @ a.T).T
    return torch.bmm(a.expand(parts, 1, -1), b.unflatten(0, (parts, -1)).mT)


def frozen_matmul(x, make: Callable, parts: Sequence):
    """`x @ make(*parts)` with a gradient for `x` alone, `make`'s matrix being made again for it instead of kept.

    Every backend would make it much too early (it needs nothing but weights), and JAX and TensorFlow keep the one of the
    forward pass for the backward pass, since both are the same to them: all of a model's at a time. So it waits for `x`,
    and the second one for what comes back.

    Args:
        x: (N, K). parts: tensors; they get no gradient. make: gives (K, M) in the dtype of `x`.

    Returns:
        (N, M).
    """
    import keras

    name = keras.config.backend()
    make_product = {
        "jax": _jax_frozen_matmul,
        "tensorflow": _tensorflow_frozen_matmul,
        "torch": _torch_frozen_matmul,
    }
    return make_product[name](x, make, tuple(parts))


def _jax_frozen_matmul(x, make: Callable, parts: tuple):
    import jax

    @jax.custom_vjp
    def product(x, parts):
        return x @ make(*not_before(x, parts))

    def backward(parts, gradient):
        return gradient @ make(*not_before(gradient, parts)).T, None

    product.defvjp(lambda x, parts: (product(x, parts), parts), backward)
    return product(x, parts)


def _tensorflow_frozen_matmul(x, make: Callable, parts: tuple):
    import tensorflow as tf

    @tf.custom_gradient
    def product(x):
        def backward(gradient):
            return matmul(gradient, make(*not_before(gradient, parts)), transpose_b=True)

        return tf.matmul(x, make(*not_before(x, parts))), backward

    return product(x)


def _torch_frozen_matmul(x, make: Callable, parts: tuple):
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *parts):
            ctx.save_for_backward(*parts)
            return x @ make(*parts)

        @staticmethod
        def backward(ctx, gradient):
            return gradient @ make(*ctx.saved_tensors).T, *(None for _ in parts)

    return Product.apply(x, *parts)
