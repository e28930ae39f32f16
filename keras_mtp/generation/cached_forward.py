"""The trunk over a few tokens at a time, and the heads behind it, with the keys and values of earlier ones kept (cache.py).

Pinned by test_cached_forward.py: cached equals uncached.

The trunk does not wait for the heads: it keeps the states that they read, and they follow when the tokens that they
need (`SequentialHead`) have been said.

B rows, R new tokens per row, S cache slots, H key-value heads, E head size, K = 1 + number of heads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_mtp import backend
from keras_mtp.generation.attention import attend_filled
from keras_mtp.generation.cache import Cache, Entry, at_slots, positions_from
from keras_mtp.generation.merged_kernels import MergedKernels
from keras_mtp.generation.sampling import likeliest
from keras_mtp.layers.block import BlockWeights, Rotation, head_dim, run_block
from keras_mtp.quantised import embedded
from keras_mtp.unembedding import unembedding_kernel


class Weights(NamedTuple):
    """What the blocks of the trunk, those of every head, and the drafts' unembedding multiply with.

    Args:
        drafts: (n, D) or, untied, (D, n): the unembedding of the model's `draft_vocabulary`; None where that is all tokens.
    """

    trunk: list[BlockWeights]
    heads: list[list[BlockWeights]]
    drafts: Any = None


class CachedForward:
    """The layers of an `MTPCausalLM`, prefix included, as steps over a key-value cache.

    Args:
        model: the `MTPCausalLM`.
        heads: whether the far heads are run too.
        merged: kernels with LoRA in them, to be shared with other ways of running the model; made if None.
    """

    def __init__(self, model: keras.Model, *, heads: bool = False, merged: MergedKernels | None = None):
        self.backbone = model.backbone
        self.prefix_embedding = model.prefix_embedding
        self.prefix_key_values = model.prefix_key_values
        self.prefix_length = model.prefix_length
        # Slots before it hold keys and values that no pass may write again.
        self.first_slot = 0 if model.prefix_key_values is None else model.prefix_length
        self.merged = merged or MergedKernels(model.lora)
        self.variables = [*model.variables, *self.merged.variables]
        self.heads = list(model.heads) if heads else []
        self.head_blocks = [_blocks_of(head, self.backbone.hidden_dim) for head in self.heads]
        self.draft_ids = np.array(model.draft_vocabulary if heads else (), "int32")

    def empty_cache(self, batch_size: int, slots: int) -> Cache:
        """Zeros in the compute dtype. `slots` is a multiple of `CHUNK`."""
        state = (batch_size, slots, self.backbone.hidden_dim)
        return Cache(
            trunk=[_empty(block, batch_size, slots) for block in self.backbone.transformer_layers],
            heads=[[_empty(b, batch_size, slots) for b in blocks] for blocks in self.head_blocks],
            reads={head.reads: ops.zeros(state, self.backbone.compute_dtype) for head in self.heads},
        )

    def weights(self) -> Weights:
        """What the blocks multiply with, to be read once before a loop of steps."""
        merged = self.merged.by_layer()
        return Weights(
            trunk=[BlockWeights.of(block, merged) for block in self.backbone.transformer_layers],
            heads=[[BlockWeights.of(block) for block in blocks] for blocks in self.head_blocks],
            drafts=self._draft_unembedding() if len(self.draft_ids) else None,
        )

    def read_prefix(self, cache: Cache) -> Cache:
        """Writes the prefix, if there is one, into the first P slots of every row; computed for one row."""
        if self.prefix_key_values is not None:
            return self._with_key_values(cache)
        if self.prefix_embedding is None:
            return cache
        weights, slots = self.weights(), cache.slots
        start, no_ids = ops.zeros((1,), "int32"), ops.zeros((1, slots, 1), "int32")
        no_token = ops.zeros((1, 0, self.backbone.hidden_dim), self.backbone.token_embedding.compute_dtype)
        _, of_one = self._trunk(weights, self.prefix_embedding(no_token), start, self.empty_cache(1, slots))
        for k in self.far:
            _, of_one = self.head(k, weights, no_ids, start, self.prefix_length, of_one)
        return keras.tree.map_structure(lambda one, empty: one + empty, of_one, cache)

    def _with_key_values(self, cache: Cache) -> Cache:
        """The prefix where it is keys and values: written as they are, the last block's for the heads too."""
        batch_size = ops.shape(cache.trunk[0][0])[0]
        start = ops.zeros((batch_size,), "int32")

        def written(entry: Entry, place: int) -> Entry:
            kept = [ops.transpose(x, (0, 2, 1, 3)) for x in self.prefix_key_values.of_block(place)]
            rows = [ops.broadcast_to(x, (batch_size, *x.shape[1:])) for x in kept]
            return [backend.write_rows(old, new, start) for old, new in zip(entry, rows, strict=True)]

        last = len(cache.trunk) - 1
        return cache._replace(
            trunk=[written(entry, place) for place, entry in enumerate(cache.trunk)],
            heads=[[written(entry, last) for entry in entries] for entries in cache.heads],
        )

    def step(self, weights: Weights, token_ids, start, cache: Cache):
        """The trunk over R new tokens per row.

        Args:
            weights: from `weights`.
            token_ids: int tensor (B, R). start: int tensor (B,), the position of each row's first new token, prefix
                counted; `start + R` must not pass S, or earlier slots are overwritten.
            cache: from an earlier step, or from `read_prefix`. On torch it is changed in place.

        Returns:
            `(states, cache)`: head_1's normed states (B, R, D).
        """
        x = embedded(self.backbone.token_embedding, token_ids)
        states, cache = self._trunk(weights, x, start, cache)
        return self.backbone.layer_norm(states), cache

    @property
    def far(self) -> Sequence[int]:
        """The k of every `head_k` but the first."""
        return range(2, 2 + len(self.heads))

    def head(self, k: int, weights: Weights, ids, start, width: int, cache: Cache):
        """`head_k` over positions that the trunk has read.

        Args:
            k: 2 to K. weights: from `weights`.
            ids: int tensor (B, S, 1), the tokens in the slots of their positions. A head that reads tokens is given, at
                position t, the one in slot t + k - 1.
            start: int tensor (B,), the first of the positions. width: R, how many.
            cache: from `step`. On torch it is changed in place.

        Returns:
            `(states, cache)`: the head's normed states (B, R, D).
        """
        head, place = self.heads[k - 2], k - 2
        positions = positions_from(start, width)
        tokens = []
        if head.reads_tokens:
            places = at_slots(ids, start + k - 1, width)[:, :, 0]
            embeddings = embedded(self.backbone.token_embedding, places)
            no_token = positions < self.prefix_length  # as in training
            tokens = [ops.where(no_token[:, :, None], ops.zeros_like(embeddings), embeddings)]
        run = _Run(weights.heads[place], cache.heads[place], positions, self._rotation(positions))
        states = head.advance(at_slots(cache.reads[head.reads], start, width), run, *tokens)
        heads = [*cache.heads[:place], run.updated, *cache.heads[place + 1 :]]
        return self.backbone.layer_norm(states), cache._replace(heads=heads)

    def logits(self, states):
        """(..., D) -> (..., V)."""
        embedding = self.backbone.token_embedding
        rows = ops.reshape(states, (-1, states.shape[-1]))
        kernel = unembedding_kernel(embedding, states.dtype, after=rows)
        logits = backend.matmul(rows, kernel, transpose_b=embedding.tie_weights)
        return ops.reshape(logits, (*ops.shape(states)[:-1], embedding.input_dim))

    def likeliest(self, weights: Weights, states):
        """The likeliest token of the draft vocabulary: (B, R, D) -> int32 (B, R)."""
        if weights.drafts is None:
            return likeliest(self.logits(states))
        rows = ops.reshape(states, (-1, states.shape[-1]))
        tied = self.backbone.token_embedding.tie_weights
        place = likeliest(backend.matmul(rows, weights.drafts, transpose_b=tied))
        return ops.reshape(ops.take(self.draft_ids, place), ops.shape(states)[:2])

    def _draft_unembedding(self):
        embedding = self.backbone.token_embedding
        kernel = unembedding_kernel(embedding, embedding.compute_dtype)
        return ops.take(kernel, self.draft_ids, axis=0 if embedding.tie_weights else 1)

    def _trunk(self, weights: Weights, x, start, cache: Cache):
        positions = positions_from(start, x.shape[1])
        run = _Run(weights.trunk, cache.trunk, positions, self._rotation(positions))
        *blocks, last_block = self.backbone.transformer_layers
        for block in blocks:
            x = run(block, x)
        states = {"before_last_block": x, "last_block": run(last_block, x)}
        reads = {name: backend.write_rows(old, states[name], start) for name, old in cache.reads.items()}
        return states["last_block"], cache._replace(trunk=run.updated, reads=reads)

    def _rotation(self, positions) -> Rotation:
        return Rotation(self.backbone.transformer_layers[0], positions)


class _Run:
    """Runs blocks one after another over the keys and values in their entries and the new ones, which it writes there."""

    def __init__(self, weights: list[BlockWeights], entries: list[Entry], positions, rotation: Rotation):
        self.weights, self.entries = weights, entries
        self.positions, self.rotation = positions, rotation
        self.updated: list[Entry] = []

    def __call__(self, block, x):
        place = len(self.updated)
        scale = block._self_attention_layer._inv_norm_factor

        def attend(query, key, value):
            keys, values = (
                backend.write_rows(old, ops.transpose(new, (0, 2, 1, 3)), self.positions[:, 0])
                for old, new in zip(self.entries[place], (key, value), strict=True)
            )
            self.updated.append([keys, values])
            return attend_filled(query, keys, values, self.positions, scale)

        return run_block(self.weights[place], x, self.rotation, attend)


def _empty(block, batch_size: int, slots: int) -> Entry:
    attention = block._self_attention_layer
    shape = (batch_size, attention.num_key_value_heads, slots, head_dim(block))
    return [ops.zeros(shape, block.compute_dtype) for _ in range(2)]


def _blocks_of(head, hidden_dim: int) -> list:
    """The decoder blocks of a head, in the order in which it runs them."""
    blocks = []

    def note(block, x):
        blocks.append(block)
        return x

    state = ops.zeros((1, 1, hidden_dim), head.compute_dtype)
    head.advance(state, note, *[state] * head.reads_tokens)
    return blocks
