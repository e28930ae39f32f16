"""Prefix tuning: trained keys and values in front of the text, in every block.

    block l    keys     [ P trained | those of the tokens ]       P places that no token stands in
               values   [ P trained | those of the tokens ]

Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation" (arXiv 2101.00190, section 4). A trained
embedding decides one vector per place, this one every block's. There the keys and values are made by a small network while
they are trained (section 4.3), since started at random they are unstable; here they start from what the frozen model itself
makes of a prefix of embeddings (their appendix's "real words"), and are trained directly. So a model with these is at
first exactly the one with that embedding prefix.

Keys are kept rotated, as a cache holds them: those of place p for position p. Nothing is rotated again, and it is what
Hugging Face PEFT's prefix tuning trains; the tokens' own positions begin at P.

P prefix places, H key-value heads, E head size.
"""

import keras
import numpy as np
from keras import ops

from keras_mtp import backend
from keras_mtp.layers.block import BlockWeights, Rotation, grouped_attention, head_dim, run_block
from keras_mtp.quantised import plain_policy


class PrefixKeyValues(keras.layers.Layer):
    """The trained keys and values of all blocks. Float32 variables whatever the compute dtype.

    It is never called: a `PrefixedBlock`, training and decoding each ask for a block's. `MTPCausalLM` makes one from its own
    config.

    Args:
        length: int. P. blocks: how many blocks. heads: H. head_dim: E.

    Reference: arXiv 2101.00190, section 4.2.
    """

    def __init__(self, length: int, blocks: int, heads: int, head_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.length = length
        self.key_values = [
            self.add_weight(name=f"block_{place}", shape=(2, length, heads, head_dim), dtype="float32")
            for place in range(blocks)
        ]
        self.built = True

    @classmethod
    def of(cls, backbone: keras.Model, length: int, **kwargs) -> "PrefixKeyValues":
        """One of a backbone's sizes."""
        first = backbone.transformer_layers[0]
        return cls(
            length, len(backbone.transformer_layers), first.num_key_value_heads, head_dim(first), **kwargs
        )

    def start_from(self, backbone: keras.Model, vectors: np.ndarray) -> None:
        """Takes what the backbone makes of a prefix of embeddings (P, D)."""
        read = backend.compiled(lambda x: _key_values(backbone, x), backbone.variables)
        for variable, value in zip(self.key_values, read(vectors), strict=True):
            variable.assign(value)

    def of_block(self, place: int):
        """`(keys, values)` of a block, each (1, P, H, E) in the compute dtype."""
        keys, values = ops.unstack(ops.cast(self.key_values[place], self.compute_dtype), axis=0)
        return keys[None], values[None]


class PrefixedBlock(keras.layers.Layer):
    """A keras-hub block's own sub-layers, its attention looking at trained keys and values too.

    keras-hub's call would take them as a cache, into which it writes what no gradient passes on TensorFlow
    (test_prefix_key_values.py::test_upstream_cache_still_stops_gradients_on_tensorflow).

    Args:
        block: the `LlamaTransformerDecoder`. prefix: the `PrefixKeyValues`. place: whose keys and values.

    Call arguments:
        hidden_states: float tensor (B, T, D), of the tokens alone; the first is at position P.

    Returns:
        Float tensor (B, T, D).
    """

    def __init__(self, block: keras.layers.Layer, prefix: PrefixKeyValues, place: int, **kwargs):
        super().__init__(dtype=plain_policy(block), **kwargs)
        self.block, self.prefix, self.place = block, prefix, place
        self.built = True

    def call(self, hidden_states):
        batch_size, tokens = ops.shape(hidden_states)[:2]
        before = self.prefix.of_block(self.place)
        positions = self.prefix.length + ops.arange(tokens, dtype="int32")
        places = ops.arange(self.prefix.length + tokens, dtype="int32")
        visible = (places[None] <= positions[:, None])[None]
        scale = self.block._self_attention_layer._inv_norm_factor

        def attend(query, key, value):
            kept = (ops.broadcast_to(x, (batch_size, *x.shape[1:])) for x in before)
            keys, values = (
                ops.concatenate([x, own], axis=1) for x, own in zip(kept, (key, value), strict=True)
            )
            return grouped_attention(query, keys, values, visible, scale)

        rotation = Rotation(self.block, positions[None])
        return run_block(BlockWeights.of(self.block), hidden_states, rotation, attend)

    def compute_output_shape(self, input_shape):
        return input_shape


def _key_values(backbone, vectors) -> list:
    """What every block makes of P embeddings: (P, D) -> a (2, P, H, E) per block, keys rotated."""
    length = vectors.shape[0]
    first = backbone.transformer_layers[0]
    positions = ops.arange(length, dtype="int32")
    rotation, visible = Rotation(first, positions[None]), (positions[None] <= positions[:, None])[None]
    found = []

    def attend(query, key, value):
        found.append(ops.cast(ops.concatenate([key, value], axis=0), "float32"))
        return grouped_attention(query, key, value, visible, first._self_attention_layer._inv_norm_factor)

    x = ops.cast(vectors[None], backbone.compute_dtype)
    for block in backbone.transformer_layers:
        x = run_block(BlockWeights.of(block), x, rotation, attend)
    return found
