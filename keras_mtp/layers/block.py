"""One Llama decoder block over keras-hub's own sub-layers, with the attention left to the caller.

keras-hub's block does its own attention: one cache index for a whole batch, every row computed in full, the rotary table
made twice a block. Training (what all rows share is computed once) and decoding (ragged prompts over a cache) need
another, so the block is spelled out here once for both. Weights stay in keras-hub's layers. Pinned by test_block.py:
the same numbers as keras-hub's call, and its private names are there.

N positions, H key-value heads, G query heads per key-value head, E head size.
"""

import math
from collections.abc import Callable
from typing import Any

from keras import ops

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
        head_dim = attention._query_dense.kernel.shape[-1]
        of_positions = ops.zeros((1, 1, 1, head_dim), attention.compute_dtype)
        cos, sin = attention.rotary_embedding_layer._compute_cos_sin_embedding(
            of_positions, positions=positions
        )
        # Both halves of keras-hub's table are the same.
        self.cos, self.sin = cos[..., : head_dim // 2], sin[..., : head_dim // 2]

    def __call__(self, x):
        """Rotates (B, N, heads, E)."""
        first, second = ops.split(x, 2, axis=-1)
        return ops.concatenate(
            [first * self.cos - second * self.sin, second * self.cos + first * self.sin], axis=-1
        )


def apply_block(block, x, rotation: Rotation, attend: Attend):
    """What `block(x)` computes, (B, N, D) -> (B, N, D), with `attend` in place of its attention."""
    attention = block._self_attention_layer
    h = block._self_attention_layernorm(x)
    query, key, value = (_project(layer, h) for layer in _qkv(attention))
    x = x + _project(attention._output_dense, attend(rotation(query), rotation(key), value))
    h = block._feedforward_layernorm(x)
    gate = block.activation(
        ops.cast(block._feedforward_gate_dense(h), "float32")
    )  # in float32, as keras-hub does
    gate = ops.cast(gate, block.compute_dtype)
    return x + block._feedforward_output_dense(block._feedforward_intermediate_dense(h) * gate)


def _qkv(attention):
    return attention._query_dense, attention._key_dense, attention._value_dense


def _project(dense, x):
    """`dense(x)` for an `EinsumDense` between (B, N, D) and (B, N, heads, E), in either direction.

    As one plain matrix product: torch runs Keras' einsum as a batched product of copies, at half the speed.
    """
    if dense.lora_enabled or dense.quantization_mode is not None:
        return dense(x)
    kernel = ops.cast(dense.kernel, dense.compute_dtype)
    inputs = len(x.shape) - 2  # axes of the kernel that are summed over
    shape = (*ops.shape(x)[:2], math.prod(kernel.shape[:inputs]))
    x = ops.reshape(x, shape) if inputs > 1 else x
    y = ops.matmul(x, ops.reshape(kernel, (shape[2], -1)))
    return y if inputs > 1 else ops.reshape(y, (*shape[:2], *kernel.shape[1:]))


def grouped_attention(query, key, value, visible, scale: float):
    """Attention in which every key-value head serves G query heads; softmax in float32.

    Args:
        query: (B, R, H*G, E). key, value: (B, S, H, E). visible: bool, broadcasts to (B, R, S).
        scale: usually 1 / sqrt(E).

    Returns:
        (B, R, H*G, E).
    """
    batch_size, rows, slots = ops.shape(query)[0], ops.shape(query)[1], ops.shape(key)[1]
    heads, head_dim = key.shape[2], key.shape[3]
    groups = query.shape[2] // heads
    # Two plain batched products with the heads in front: up to twice as fast on a CPU as letting `einsum` find them.
    query = ops.reshape(query * scale, (batch_size, rows, heads, groups, head_dim))
    query = ops.reshape(ops.transpose(query, (0, 2, 3, 1, 4)), (batch_size, heads, groups * rows, head_dim))
    scores = ops.cast(ops.matmul(query, ops.transpose(key, (0, 2, 3, 1))), "float32")
    scores = ops.reshape(scores, (batch_size, heads, groups, rows, slots))
    scores = ops.where(visible[:, None, None], scores, -1e9)
    weights = ops.cast(ops.softmax(scores, axis=-1), value.dtype)
    weights = ops.reshape(weights, (batch_size, heads, groups * rows, slots))
    attended = ops.matmul(weights, ops.transpose(value, (0, 2, 1, 3)))
    attended = ops.reshape(attended, (batch_size, heads, groups, rows, head_dim))
    return ops.reshape(ops.transpose(attended, (0, 3, 1, 2, 4)), (batch_size, rows, heads * groups, head_dim))
