"""The matrix that makes logits of hidden states, of a `ReversibleEmbedding`: tied to its table or not, quantised or not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_mtp import backend
from keras_mtp.quantised import Quantised, dequantised, is_quantised


def unembedding_kernel(layer: keras.layers.Layer, dtype: str, *, after: Any = None):
    """The unembedding in `dtype`: (V, D) when tied to the embedding, (D, V) when not.

    Args:
        after: as in `made_after`; None where that does not matter.
    """
    parts, make = unembedding_parts(layer, dtype)
    return make(*parts) if after is None else made_after(after, parts, make)


def unembedding_parts(layer: keras.layers.Layer, dtype: str) -> tuple[tuple, Callable]:
    """`(parts, make)`: what is stored of the unembedding, one tensor or several, and what makes the kernel of it."""
    if is_quantised(layer):
        stored = Quantised.of_unembedding(layer)
        return stored.parts, partial(dequantised, layout=stored.layout, dtype=dtype)
    kernel = ops.cast(layer.embeddings if layer.tie_weights else layer.reverse_embeddings, dtype)
    return (kernel,), lambda kernel: kernel


def made_after(x, parts: tuple, make: Callable):
    """The kernel; one that is made of several parts is not made, and held, before the tensor `x` is there."""
    return make(*parts) if len(parts) == 1 else make(*backend.not_before(x, parts))
