"""Matrix products: without a copy of what is transposed, and without keeping a matrix that can be made again."""

from collections.abc import Callable, Sequence

from keras_mtp.backend.temporaries import not_before


def matmul(a, b, *, transpose_b: bool = False):
    """`a @ b`, or `a @ b.T` without a copy of `b`, which TensorFlow's transpose and torch's einsum would make.

    Args:
        a: (N, K). b: (K, M), or (M, K) with `transpose_b`.
    """
    import keras

    if transpose_b and keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.matmul(a, b, transpose_b=True)
    return keras.ops.matmul(a, keras.ops.transpose(b) if transpose_b else b)


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
