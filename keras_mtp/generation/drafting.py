"""Drafts: what the far heads say comes after the token that is certain.

    head_k at t     the trunk's state of t          -> token[t + k]     transformer and linear heads: all at once
                    and the token in t + k - 1      -> token[t + k]     sequential heads: each given the draft before its own

t is the last place that has been read, t + 1 the certain token's. A wrong draft costs time and never changes the answer,
so nothing here has to be exact.
"""

from keras import ops

from keras_mtp import backend
from keras_mtp.generation.cache import Cache, at_slots
from keras_mtp.generation.cached_forward import CachedForward, Weights


def drafted(forward: CachedForward, weights: Weights, ids, at, cache: Cache):
    """Has every far head say its likeliest token.

    Args:
        forward: the layers, heads included. weights: from `forward.weights`.
        ids: int tensor (B, S, 1), the tokens in the slots of their positions.
        at: int tensor (B,), the slot of the certain token; the trunk has read what is before it.
        cache: the trunk's and the heads'.

    Returns:
        `(ids, cache)`: the K - 1 drafts stand in the slots behind `at`; any ids that the vocabulary has, even where a head
        says NaN.
    """
    # The places that the last pass has read, at most K, and K - 2 that a head has read with a draft for a token.
    width = 2 * len(forward.heads)
    start = ops.maximum(at - width, forward.first_slot)
    unnamed: list = []  # states of the heads up to here that have not been asked for a token

    for k, head in zip(forward.far, forward.heads, strict=True):
        if head.reads_tokens:
            ids, unnamed = _named(forward, weights, unnamed, ids, at + k - 1), []
        states, cache = forward.head(k, weights, ids, start, width, cache)
        unnamed.append(at_slots(states, at - 1 - start, 1))
    return _named(forward, weights, unnamed, ids, at + 1 + len(forward.heads)), cache


def _named(forward: CachedForward, weights: Weights, states: list, ids, end):
    """`ids` with the likeliest tokens of some states, each (B, 1, D), in the slots before `end` (B,)."""
    if not states:
        return ids
    likeliest = forward.likeliest(weights, ops.concatenate(states, axis=1))
    return backend.write_rows(ids, likeliest[:, :, None], end - len(states))
