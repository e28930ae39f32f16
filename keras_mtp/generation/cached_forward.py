"""One pass of the trunk over a few tokens at a time, with the keys and values of earlier ones kept.

Prompts of different lengths need a position per row. The prefix is the first thing in the cache, and positions count it.
Pinned by test_cached_forward.py: cached equals uncached.

B rows, R new tokens per row, S cache slots, H key-value heads, G query heads per key-value head, E head size.
"""

import keras
from keras import ops

from keras_mtp.layers.block import Rotation, apply_block, grouped_attention

Cache = list  # one [keys, values] per block, each (B, S, H, E)


class CachedForward:
    """The trunk of an `MTPCausalLM`, prefix included, as a step over a key-value cache.

    A token lies in a *slot* of the cache, the same for every row of the batch; its rotary *position* is the row's own.
    So ragged prompts, padded on the right, can be followed by new tokens that all rows write into the same slot.

    Args:
        model: the `MTPCausalLM` whose `head_1` is to be computed.
    """

    def __init__(self, model: keras.Model):
        self.backbone = model.backbone
        self.prefix_embedding = model.prefix_embedding
        self.prefix_length = model.prefix_length

    def empty_cache(self, batch_size, slots) -> Cache:
        """Zeros (B, S, H, E) for every block, in the compute dtype."""
        attention = self.backbone.transformer_layers[0]._self_attention_layer
        head_dim = self.backbone.hidden_dim // attention.num_query_heads
        shape = (batch_size, slots, attention.num_key_value_heads, head_dim)
        dtype = self.backbone.token_embedding.compute_dtype
        return [[ops.zeros(shape, dtype), ops.zeros(shape, dtype)] for _ in self.backbone.transformer_layers]

    def prefill(self, token_ids, lengths, cache: Cache):
        """Reads the prefix and the prompts into the first P + T slots.

        Args:
            token_ids: int tensor (B, T), padded on the right. lengths: int tensor (B,), tokens of each prompt.

        Returns:
            `(hidden_states, cache)`: the normed state (B, D) of every prompt's last token.
        """
        x = self.backbone.token_embedding(token_ids)
        if self.prefix_embedding is not None:
            x = self.prefix_embedding(x)
        batch_size, length = ops.shape(x)[0], ops.shape(x)[1]
        positions = ops.broadcast_to(ops.arange(length, dtype="int32"), (batch_size, length))
        slots = ops.shape(cache[0][0])[1]
        causal = ops.arange(slots, dtype="int32")[None, None] <= positions[:, :, None]
        x, cache = self._blocks(x, positions, causal, cache, 0)
        last = ops.reshape(self.prefix_length + lengths - 1, (-1, 1, 1))
        return ops.squeeze(ops.take_along_axis(self.backbone.layer_norm(x), last, axis=1), 1), cache

    def step(self, token_ids, positions, visible, cache: Cache, slot):
        """One pass over R new tokens per row.

        Args:
            token_ids: int tensor (B, R). positions: int tensor (B, R), prefix counted.
            visible: bool tensor (B, R, S), the slots each new token may look at, its own included.
            cache: as `prefill` left it. slot: where the new tokens go; `slot + R` must not pass S.

        Returns:
            `(hidden_states, cache)`: normed states (B, R, D).
        """
        x = self.backbone.token_embedding(token_ids)
        x, cache = self._blocks(x, positions, visible, cache, slot)
        return self.backbone.layer_norm(x), cache

    def logits(self, hidden_states):
        """(..., D) -> (..., V)."""
        return self.backbone.token_embedding(hidden_states, reverse=True)

    def _blocks(self, x, positions, visible, cache, slot):
        blocks = self.backbone.transformer_layers
        rotation = Rotation(blocks[0], positions)
        updated = []
        for block, entry in zip(blocks, cache, strict=True):
            x, entry = _cached_block(block, x, rotation, visible, entry, slot)
            updated.append(entry)
        return x, updated


def _cached_block(block, x, rotation, visible, entry, slot):
    """A block over the keys and values in `entry` and the new ones, which it writes from `slot` on."""
    kept = list(entry)

    def attend(query, key, value):
        keys = ops.slice_update(entry[0], [0, slot, 0, 0], key)
        values = ops.slice_update(entry[1], [0, slot, 0, 0], value)
        kept[:] = keys, values
        return grouped_attention(query, keys, values, visible, block._self_attention_layer._inv_norm_factor)

    return apply_block(block, x, rotation, attend), kept
