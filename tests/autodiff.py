"""Values and gradients straight from the backend, for tests that need no model around what they differentiate."""

from collections.abc import Callable

import keras
import numpy as np


def value_and_gradients(function: Callable, variables: list[keras.Variable]) -> Callable:
    """Differentiates `function(x, *others)`, a scalar, with respect to `x` and the variables it reads.

    Returns:
        A function of the same NumPy arrays that gives `(value, [gradient of x, *gradients of the variables])`.
    """
    backend = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[keras.config.backend()]
    differentiated = backend(function, variables)

    def call(*arrays: np.ndarray) -> tuple[float, list[np.ndarray]]:
        value, gradients = differentiated(*arrays)
        return float(keras.ops.convert_to_numpy(value)), [keras.ops.convert_to_numpy(g) for g in gradients]

    return call


def _jax(function, variables):
    import jax

    def stateless(differentiable, others):
        x, values = differentiable
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(x, *others)

    # What the compiler could make faster is not worth its time here.
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    compiled = jax.jit(jax.value_and_grad(stateless), compiler_options=quick)

    def call(x, *others):
        value, (gradient, gradients) = compiled((x, [v.value for v in variables]), others)
        return value, [gradient, *gradients]

    return call


def _tensorflow(function, variables):
    import tensorflow as tf

    def call(x, *others):
        x, watched = tf.convert_to_tensor(x), [v.value for v in variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x, *others)
        gradients = tape.gradient(value, [x, *watched], unconnected_gradients="zero")
        return value, [tf.convert_to_tensor(g) for g in gradients]  # an embedding's has rows only

    return call


def _torch(function, variables):
    import torch

    def call(x, *others):
        watched = [keras.ops.convert_to_tensor(x).requires_grad_(), *(v.value for v in variables)]
        value = function(watched[0], *others)
        gradients = torch.autograd.grad(value, watched, allow_unused=True)
        return value, [
            torch.zeros_like(w) if g is None else g for g, w in zip(gradients, watched, strict=True)
        ]

    return call
