"""One Llama decoder block over keras-hub's own sub-layers, with the attention left to the caller.

keras-hub's block does its own attention: one cache index for a whole batch, every row computed in full, the rotary table
made twice a block. Training (what all rows share is computed once) and decoding (ragged prompts over a cache) need
another, so the block is spelled out here once for both. Weights stay in keras-hub's layers. Pinned by test_block.py:
the same numbers as keras-hub's call, and its private names are there.

N positions, H key-value heads, G query heads per key-value head, E head size.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_mtp import backend, distribution
from keras_mtp.layers.lora import inputs_of, projection
from keras_mtp.quantised import Quantised, is_quantised
from keras_mtp.tuning import PROJECTIONS

# (query (B, N, H*G, E), key (B, N, H, E), value (B, N, H, E)) -> (B, N, H*G, E); query and key are rotated.
Attend = Callable[[Any, Any, Any], Any]


class Rotation:
    """The rotary embedding of some positions, computed once for all blocks.

    Args:
        block: any block of the backbone; its own rotary layer says the frequencies.
        positions: int tensor (B, N) or (1, N), the prefix counted.
    """

    def __init__(self, block, positions):
        attention = block._self_attention_layer
        size = head_dim(block)
        of_positions = ops.zeros((1, 1, 1, size), attention.compute_dtype)
        cos, sin = attention.rotary_embedding_layer._compute_cos_sin_embedding(
            of_positions, positions=positions
        )
        # Both halves of keras-hub's table are the same.
        self.cos, self.sin = cos[..., : size // 2], sin[..., : size // 2]

    def __call__(self, x):
        """Rotates (B, N, heads, E)."""
        first, second = ops.split(x, 2, axis=-1)
        return ops.concatenate(
            [first * self.cos - second * self.sin, second * self.cos + first * self.sin], axis=-1
        )


class LowRank(NamedTuple):
    """A frozen matrix and its LoRA, kept apart: the gradient of their sum would cost as much as training the matrix.

    Args:
        kernel: (inputs, outputs), perhaps a `Quantised`. a: (inputs, G * r). b: (r, outputs / G), scaled by alpha / r; G is 1, or the number of
            attention heads, which share `b`.
    """

    kernel: Any
    a: Any
    b: Any


class BlockWeights(NamedTuple):
    """What a block multiplies with, matrices in the compute dtype, so that one function runs every block.

    A matrix is (inputs, outputs), heads flattened; `Quantised` where it is int8 or int4; a `LowRank` where LoRA is trained. In
    place of the matrix stands the layer itself where Keras quantised it otherwise: it is then called.
    """

    attention_scale: Any  # (D,), float32, as the other norm's
    query: Any
    key: Any
    value: Any
    output: Any
    feedforward_scale: Any
    gate: Any
    up: Any
    down: Any
    head_dim: int
    epsilon: float  # of both norms

    @classmethod
    def of(cls, block, merged: Mapping[int, Any] | None = None) -> "BlockWeights":
        """Reads them off a keras-hub `LlamaTransformerDecoder`.

        Args:
            merged: kernels to take in place of a layer's own, by the layer's `id`.
        """
        attention_norm = block._self_attention_layernorm

        def matrix(name):
            dense = projection(block, name)
            return _matrix(dense, inputs_of(name), (merged or {}).get(id(dense)))

        return cls(
            attention_scale=ops.convert_to_tensor(attention_norm.scale),
            query=matrix("query"),
            key=matrix("key"),
            value=matrix("value"),
            output=matrix("output"),
            feedforward_scale=ops.convert_to_tensor(block._feedforward_layernorm.scale),
            gate=matrix("gate"),
            up=matrix("up"),
            down=matrix("down"),
            head_dim=head_dim(block),
            epsilon=attention_norm.epsilon,
        )


def head_dim(block) -> int:
    """E, of a keras-hub `LlamaTransformerDecoder`."""
    return block.hidden_dim // block.num_query_heads


def _matrix(dense, inputs: int, merged=None):
    """The kernel, its first `inputs` axes summed over, as one matrix.

    As one plain matrix product: torch runs Keras' einsum as a batched product of copies, at half the speed.
    """
    dtype = dense.compute_dtype
    apart = dense.lora_enabled and merged is None
    if is_quantised(dense) and merged is None:
        kernel = Quantised.of_dense(dense, inputs)
        rows = kernel.layout.shape[0]
    elif dense.quantization_mode is not None and merged is None:
        return dense
    else:
        kernel = ops.cast(dense._kernel if apart else dense.kernel if merged is None else merged, dtype)
        rows = math.prod(kernel.shape[:inputs])
        kernel = ops.reshape(kernel, (rows, -1))
    if not apart:
        return kernel
    scaled = dense.lora_alpha / dense.lora_rank * dense.lora_kernel_b
    a = ops.reshape(ops.cast(dense.lora_kernel_a, dtype), (rows, -1))
    return LowRank(kernel, a, ops.cast(scaled, dtype))


def copy_weights(block, other) -> None:
    """Gives one decoder block the weights of another, in floating point where that one is quantised."""
    whole = distribution.active().whole  # of a trunk whose weights several devices share, too
    if not any(is_quantised(projection(block, name)) for name in PROJECTIONS):
        other.set_weights([whole(variable.value) for variable in block.weights])
        return
    for name in PROJECTIONS:
        dense, kernel = projection(block, name), projection(other, name)._kernel
        kernel.assign(ops.reshape(Quantised.of_dense(dense, inputs_of(name)).kernel("float32"), kernel.shape))
    for norm in ("_self_attention_layernorm", "_feedforward_layernorm"):
        getattr(other, norm).scale.assign(
            whole(getattr(block, norm).scale.value)
        )  # not the same tensor on JAX


def run_block(weights: BlockWeights, x, rotation: Rotation, attend: Attend):
    """What the block computes, (B, N, D) -> (B, N, D), with `attend` in place of its attention.

    Of tensors alone: what `backend.fused` can take.
    """
    shape = tuple(ops.shape(x)[:2])

    def project(h, weight):
        if isinstance(weight, keras.layers.Layer):
            return weight(h)
        heads = _sizes(weight)[1] // weights.head_dim
        return ops.reshape(_product(h, weight), (*shape, heads, weights.head_dim))

    h = _norm(x, weights.attention_scale, weights.epsilon)
    query, key, value = (project(h, w) for w in (weights.query, weights.key, weights.value))
    attended = attend(rotation(query), rotation(key), value)
    if not isinstance(weights.output, keras.layers.Layer):
        attended = ops.reshape(attended, (*shape, _sizes(weights.output)[0]))
    x = x + _product(attended, weights.output)
    h = _norm(x, weights.feedforward_scale, weights.epsilon)
    gate = ops.silu(ops.cast(_product(h, weights.gate), "float32"))  # in float32, as keras-hub does
    return x + _product(_product(h, weights.up) * ops.cast(gate, h.dtype), weights.down)


def _sizes(weight) -> tuple[int, int]:
    """(inputs, outputs)."""
    kernel = weight.kernel if isinstance(weight, LowRank) else weight
    return kernel.layout.shape if isinstance(kernel, Quantised) else kernel.shape


def _product(x, weight):
    if isinstance(weight, keras.layers.Layer):
        return weight(x)
    if isinstance(weight, Quantised):
        return weight.product(x)
    if not isinstance(weight, LowRank):
        return backend.matmul(x, weight)
    kernel, a, b = weight
    shape = tuple(ops.shape(x)[:2])
    groups = a.shape[1] // b.shape[0]
    low = ops.reshape(ops.matmul(x, a), (*shape, groups, b.shape[0]))
    return _product(x, kernel) + ops.reshape(ops.matmul(low, b), (*shape, _sizes(kernel)[1]))


def _norm(x, scale, epsilon: float):
    """RMS norm in float32, as keras-hub's `LlamaLayerNorm`."""
    h = ops.cast(x, "float32")
    h = h * ops.rsqrt(ops.mean(ops.square(h), axis=-1, keepdims=True) + epsilon)
    return ops.cast(h * scale, x.dtype)


def grouped_attention(query, key, value, visible, scale: float):
    """Attention in which every key-value head serves G query heads; softmax in float32.

    Args:
        query: (B, R, H*G, E). key, value: (B, S, H, E). visible: bool, broadcasts to (B, R, S).
        scale: usually 1 / sqrt(E).

    Returns:
        (B, R, H*G, E).
    """
    heads = key.shape[2]
    groups = query.shape[2] // heads
    key, value = ops.transpose(key, (0, 2, 1, 3)), ops.transpose(value, (0, 2, 1, 3))
    visible = ops.tile(visible, (1, groups, 1))[:, None]
    return unfold_groups(backend.attention(fold_groups(query, heads), key, value, visible, scale), groups)


def fold_groups(query, heads: int):
    """(B, R, H*G, E) to (B, H, G*R, E): a key-value head's queries one below the other, the rows of a group together.

    Attention is then plain products, up to twice as fast on a CPU as letting `einsum` find them.
    """
    batch_size, rows, query_heads, head_dim = ops.shape(query)
    groups = query_heads // heads
    query = ops.transpose(ops.reshape(query, (batch_size, rows, heads, groups, head_dim)), (0, 2, 3, 1, 4))
    return ops.reshape(query, (batch_size, heads, groups * rows, head_dim))


def unfold_groups(attended, groups: int):
    """The inverse of `fold_groups`, `groups` being G."""
    batch_size, heads, folded_rows, head_dim = ops.shape(attended)
    rows = folded_rows // groups
    attended = ops.reshape(attended, (batch_size, heads, groups, rows, head_dim))
    return ops.reshape(ops.transpose(attended, (0, 3, 1, 2, 4)), (batch_size, rows, heads * groups, head_dim))
