"""One pass of the trunk and the heads over a few tokens at a time, with the keys and values of earlier ones kept.

    slot of the cache = position of the token in its row      [ prefix | prompt | answer ]

Every row writes at its own place, so rows of different lengths advance each at its own pace, and going back to an
earlier position is all that forgetting a token takes: what lies behind a row's position is never looked at before it is
written again. Pinned by test_cached_forward.py: cached equals uncached.

B rows, R new tokens per row, S cache slots, H key-value heads, E head size, K = 1 + number of heads.
"""

import keras
from keras import ops

from keras_mtp import backend
from keras_mtp.generation.attention import attend_filled
from keras_mtp.layers.block import Rotation, apply_block

Cache = list  # one [keys, values] per block, each (B, H, S, E): the trunk's blocks, then those of the heads


class CachedForward:
    """The layers of an `MTPCausalLM`, prefix included, as a step over a key-value cache.

    Args:
        model: the `MTPCausalLM`.
        heads: whether the far heads are run too.
    """

    def __init__(self, model: keras.Model, *, heads: bool = False):
        self.backbone = model.backbone
        self.prefix_embedding = model.prefix_embedding
        self.prefix_length = model.prefix_length
        self.heads = list(model.heads) if heads else []
        self.blocks = [*self.backbone.transformer_layers]
        for head in self.heads:
            self.blocks += _blocks_of(head, self.backbone.hidden_dim)

    def empty_cache(self, batch_size, slots) -> Cache:
        """Zeros (B, H, S, E) for every block, in the compute dtype. `slots` is a multiple of `attention.CHUNK`."""
        cache = []
        for block in self.blocks:
            attention = block._self_attention_layer
            head_dim = attention._query_dense.kernel.shape[-1]
            shape = (batch_size, attention.num_key_value_heads, slots, head_dim)
            cache.append([ops.zeros(shape, block.compute_dtype) for _ in range(2)])
        return cache

    def read_prefix(self, cache: Cache) -> Cache:
        """Writes the prefix, if there is one, into the first P slots of every row; computed for one row."""
        if self.prefix_embedding is None:
            return cache
        of_one = self.empty_cache(1, cache[0][0].shape[2])
        no_token = ops.zeros((1, 0, self.backbone.hidden_dim), self.backbone.token_embedding.compute_dtype)
        _, of_one = self._states(self.prefix_embedding(no_token), ops.zeros((1,), "int32"), of_one)
        return [
            [one + empty for one, empty in zip(*pair, strict=True)]
            for pair in zip(of_one, cache, strict=True)
        ]

    def step(self, token_ids, start, cache: Cache):
        """One pass over R new tokens per row.

        Args:
            token_ids: int tensor (B, R). start: int tensor (B,), the position of each row's first new token, prefix
                counted; `start + R` must not pass S, or earlier slots are overwritten.
            cache: from an earlier step, or from `read_prefix`. On torch it is changed in place.

        Returns:
            `(states, cache)`: list of the K normed states (B, R, D), head_1's first.
        """
        states, cache = self._states(self.backbone.token_embedding(token_ids), start, cache)
        return [self.backbone.layer_norm(state) for state in states], cache

    def logits(self, states):
        """(..., D) -> (..., V)."""
        return self.backbone.token_embedding(states, reverse=True)

    def _states(self, x, start, cache):
        positions = start[:, None] + ops.arange(x.shape[1], dtype="int32")[None]
        rotation = Rotation(self.blocks[0], positions)
        updated: Cache = []

        def run(block, x):
            x, entry = _cached_block(block, x, rotation, positions, cache[len(updated)])
            updated.append(entry)
            return x

        *blocks, last_block = self.backbone.transformer_layers
        for block in blocks:
            x = run(block, x)
        read = {"before_last_block": x, "last_block": run(last_block, x)}
        states = [read["last_block"], *(head.advance(read[head.reads], run) for head in self.heads)]
        return states, updated


def _blocks_of(head, hidden_dim: int) -> list:
    """The decoder blocks of a head, in the order in which it runs them."""
    blocks = []

    def note(block, x):
        blocks.append(block)
        return x

    head.advance(ops.zeros((1, 1, hidden_dim), head.compute_dtype), note)
    return blocks


def _cached_block(block, x, rotation, positions, entry):
    """A block over the keys and values in `entry` and the new ones, which it writes at their positions."""
    kept: list = []

    def attend(query, key, value):
        new = (ops.transpose(key, (0, 2, 1, 3)), ops.transpose(value, (0, 2, 1, 3)))
        kept[:] = (backend.write_rows(old, n, positions[:, 0]) for old, n in zip(entry, new, strict=True))
        return attend_filled(query, kept[0], kept[1], positions, block._self_attention_layer._inv_norm_factor)

    return apply_block(block, x, rotation, attend), kept
