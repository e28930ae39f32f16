"""Matrices in Keras' int8 and int4: what its quantised layers hold (see rounding.py), and how it is multiplied with.

Only how Keras stores them is Keras' own. Its layers' calls round the activations too by default, which costs more of a model
than rounding the weights does, and keep or make whole kernels as their backend likes. Here activations stay as they are, and
a kernel exists in floating point only while it is multiplied with: once in the forward, once again in the backward pass.
test_quantised.py holds both against Keras' `quantize` and against plain matrices.

R rows (inputs), C columns (outputs) of a matrix as Keras has it, V vocabulary, D hidden size.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_mtp import backend, distribution
from keras_mtp.rounding import MODES


class Layout(NamedTuple):
    """How the numbers of a quantised matrix lie.

    Args:
        shape: of the matrix. inputs: which of its two axes is that of the inputs. packed: along which axis two values are in a
        byte; None for none. block: how many inputs share a scale; None for all.
    """

    shape: tuple[int, int]
    inputs: int
    packed: int | None
    block: int | None


class Quantised(NamedTuple):
    """A quantised layer's matrix as tensors.

    Args:
        values: int8, in the layout's shape or packed.
        scale: float32, one for every output, divides; or with `zero` one for every output and group, multiplies.
        zero: int8, in the shape of `scale`; None without groups.
    """

    values: Any
    scale: Any
    zero: Any
    layout: Layout

    @classmethod
    def of_dense(cls, dense, inputs: int) -> "Quantised":
        """(R, C) of a Keras `Dense` or `EinsumDense`, over whose kernel's first `inputs` axes is summed."""
        kernel = ops.convert_to_tensor(dense._kernel)
        if dense.quantization_mode == "int4":
            columns = getattr(dense, "_int4_unpacked_column_size", None) or dense._orig_output_dim
            layout = Layout((kernel.shape[0], columns), 0, 1, dense._int4_block_size)
        else:
            rows = math.prod(kernel.shape[:inputs])
            kernel = ops.reshape(kernel, (rows, -1))
            layout = Layout((rows, kernel.shape[1]), 0, None, None)
        return cls._read(kernel, dense.kernel_scale, getattr(dense, "kernel_zero", None), layout)

    @classmethod
    def of_embedding(cls, layer) -> "Quantised":
        """(V, D), the token embeddings of a Keras `ReversibleEmbedding`; tied, they are the unembedding too."""
        packed, block = (1, layer._int4_block_size) if layer.quantization_mode == "int4" else (None, None)
        layout = Layout((layer.input_dim, layer.output_dim), 1, packed, block)
        return cls._read(
            layer._embeddings, layer.embeddings_scale, getattr(layer, "embeddings_zero", None), layout
        )

    @classmethod
    def of_unembedding(cls, layer) -> "Quantised":
        """(V, D) where it is tied to the embedding, else (D, V)."""
        if layer.tie_weights:
            return cls.of_embedding(layer)
        packed, block = (0, layer._int4_block_size) if layer.quantization_mode == "int4" else (None, None)
        layout = Layout((layer.output_dim, layer.input_dim), 0, packed, block)
        zero = getattr(layer, "reverse_embeddings_zero", None)
        return cls._read(layer.reverse_embeddings, layer.reverse_embeddings_scale, zero, layout)

    @classmethod
    def _read(cls, values, scale, zero, layout: Layout) -> "Quantised":
        values, scale = ops.convert_to_tensor(values), ops.cast(scale, "float32")
        if zero is None:
            return cls(values, ops.reshape(scale, (-1,)), None, layout._replace(block=None))
        return cls(values, scale, ops.convert_to_tensor(zero), layout)

    @property
    def parts(self) -> tuple:
        """The tensors alone, for `dequantised`."""
        return (self.values, self.scale) if self.zero is None else (self.values, self.scale, self.zero)

    def kernel(self, dtype: str):
        """The matrix that it stands for."""
        return dequantised(*self.parts, layout=self.layout, dtype=dtype)

    def rows(self, index) -> "Quantised":
        """Some of the rows (V, D), by their numbers (N,)."""
        values, scale = ops.take(self.values, index, axis=0), ops.take(self.scale, index, axis=0)
        zero = None if self.zero is None else ops.take(self.zero, index, axis=0)
        layout = self.layout._replace(shape=(-1, self.layout.shape[1]))
        return Quantised(values, scale, zero, layout)

    def product(self, x):
        """`x` (..., R) times the matrix (R, C), (..., C) in the dtype of `x`, with gradients for `x` alone."""
        dtype, columns = keras.backend.standardize_dtype(x.dtype), self.layout.shape[1]
        rows = ops.reshape(x, (-1, x.shape[-1]))
        if (
            self.zero is None
        ):  # a scale for every output is cheaper after the product, and integers are exact in it
            make = partial(_integers, layout=self.layout, dtype=dtype)
            found = ops.cast(backend.frozen_matmul(rows, make, (self.values,)), "float32")
            found = ops.cast(found / self.scale, dtype)
        else:
            make = partial(dequantised, layout=self.layout, dtype=dtype)
            found = backend.frozen_matmul(rows, make, self.parts)
        return ops.reshape(found, (*ops.shape(x)[:-1], columns))


def is_quantised(layer: keras.layers.Layer) -> bool:
    """Whether a layer holds its matrix in a way that is known here."""
    return layer.quantization_mode in MODES


def mend(backbone: keras.Model) -> None:
    """Puts right two things about the quantised layers of a backbone; leaves others as they are.

    They must not round what they are given: Keras' configs can say so, but a layer that is loaded has lost its config (keras-hub
    makes it from its dtype alone). And each gets its own part of the backbone's policy map: Keras 3.15 saves a layer by its map's
    default (`layers/core/embedding.py`, `_get_embeddings_with_merged_lora`), without a scale.
    """
    for layer in backbone._flatten_layers(include_self=False):
        if is_quantised(layer):
            layer._dtype_policy = _own_policy(layer)
            layer.inputs_quantizer = None


def embedded(layer, token_ids):
    """What a `ReversibleEmbedding` makes of token ids, (B, T) -> (B, T, D).

    Keras' own call, which a functional model keeps, unpacks the whole table in int4.
    """
    if not is_quantised(layer) or keras.backend.is_keras_tensor(token_ids):
        return layer(token_ids)
    index = ops.reshape(token_ids, (-1,))
    found = Quantised.of_embedding(layer).rows(index).kernel(layer.compute_dtype)
    return ops.reshape(found, (*ops.shape(token_ids), layer.output_dim))


def table_rows(layer, token_ids: np.ndarray) -> np.ndarray:
    """Some rows of a `ReversibleEmbedding`'s table as it stores them, float32 (N, D)."""
    if is_quantised(layer):
        rows = Quantised.of_embedding(layer).rows(token_ids).kernel("float32")
    else:
        rows = ops.cast(ops.take(layer.embeddings, token_ids, axis=0), "float32")
    return distribution.active().whole(rows)


def dequantised(values, scale, zero=None, *, layout: Layout, dtype: str):
    """The matrix that some tensors in a layout stand for, computed in float32 and rounded once."""
    make, parts = partial(_dequantised, layout=layout, dtype=dtype), (values, scale, zero)
    if layout.packed == 1 - layout.inputs:
        return make(*parts)
    return backend.in_slabs(make, parts if zero is not None else parts[:2], axis=1 - layout.inputs)


def _dequantised(values, scale, zero=None, *, layout: Layout, dtype: str):
    values = _integers(values, layout=layout, dtype="float32")
    if zero is None:
        return ops.cast(values / ops.expand_dims(scale, layout.inputs), dtype)
    zero, axis, shape = ops.cast(zero, "float32"), layout.inputs, list(ops.shape(values))
    if shape[axis] % layout.block:  # the last group is a shorter one
        zero, scale = (
            ops.split(ops.repeat(each, layout.block, axis=axis), [shape[axis]], axis=axis)[0]
            for each in (zero, scale)
        )
        return ops.cast((values - zero) * scale, dtype)
    in_groups = [*shape[:axis], shape[axis] // layout.block, layout.block, *shape[axis + 1 :]]
    zero, scale = ops.expand_dims(zero, axis + 1), ops.expand_dims(scale, axis + 1)
    return ops.cast(ops.reshape((ops.reshape(values, in_groups) - zero) * scale, shape), dtype)


def _integers(values, *, layout: Layout, dtype: str):
    if layout.packed is not None:
        values = _unpacked(values, layout.packed, layout.shape[layout.packed])
    return ops.cast(values, dtype)


def _unpacked(values, axis: int, size: int):
    """int8 values, two of which were in a byte along an axis; `size` of them."""
    eight = ops.cast(8, "int8")
    low = ops.bitwise_xor(ops.bitwise_and(values, ops.cast(15, "int8")), eight) - eight
    high = ops.right_shift(values, ops.cast(4, "int8"))  # keeps the sign
    shape = list(ops.shape(values))
    shape[axis] *= 2
    both = ops.reshape(ops.stack([low, high], axis=axis + 1), shape)
    return both if size == shape[axis] else ops.split(both, [size], axis=axis)[0]


def plain_policy(layer: keras.layers.Layer) -> keras.DTypePolicy:
    """A layer's dtype policy without its quantisation: for a layer that has no matrix of its own."""
    policy = _own_policy(layer)
    return keras.DTypePolicy(policy.name.rpartition("_from_")[2]) if policy.quantization_mode else policy


def _own_policy(layer: keras.layers.Layer) -> keras.DTypePolicy:
    policy = layer.dtype_policy
    return policy[layer.path] if isinstance(policy, keras.dtype_policies.DTypePolicyMap) else policy
