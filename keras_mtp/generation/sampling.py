"""Which token comes next, given the logits: the likeliest, or one drawn by a number that belongs to its place.

Every new token has one uniform number, fixed beforehand by (seed, row, which new token it is) and drawn by NumPy, and is
the inverse of the cumulative distribution at it. So the token of a place does not know how it was computed: with drafts,
the draft x is kept exactly if the number falls on x, which it does with probability p(x), and otherwise the token has the
law of p without x. That is speculative sampling (Leviathan et al. 2023, arXiv 2211.17192, section 2.3) for a draft that
is certain, with the same tokens as without drafts and not only the same law.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from keras import ops

from keras_mtp.generation.draws import uniforms

HALVINGS = 40  # of an interval of logits, until it is smaller than float32 can tell
LOWEST = -60.0  # exp of it is nothing beside 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: what logits are divided by. 0.0: the likeliest token always.
        top_k: draw among so many likeliest tokens (and those as likely as the last of them); 0 for all.
        top_p: draw among the fewest likeliest tokens that have this probability together; 1.0 for all.
        seed: of the numbers.

    Raises:
        ValueError: a value out of range.

    Example:

    ```python
    model.generate("How many?", sampling=keras_mtp.Sampling(temperature=0.7, top_p=0.9, seed=1), max_new_tokens=8)
    ```
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"`temperature` must be at least 0. Received: temperature={self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"`top_k` must be at least 0. Received: top_k={self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"`top_p` must be above 0 and at most 1. Received: top_p={self.top_p}")
        if self.seed < 0:
            raise ValueError(f"`seed` must be at least 0. Received: seed={self.seed}")

    def uniforms(self, row: int, count: int) -> np.ndarray:
        """The numbers of a row's first `count` new tokens: float32 (count,), above 0 and below 1."""
        return uniforms(self.seed, row, count)

    @property
    def law(self) -> "Sampling":
        """What the probabilities of tokens follow from; the seed does not matter for them."""
        return dataclasses.replace(self, seed=0)

    def choose(self, logits, uniforms):
        """Tokens for logits (B, R, V) and uniforms (B, R): int tensor (B, R)."""
        return likeliest(logits) if self.temperature == 0.0 else drawn(self.weights(logits), uniforms)

    def weights(self, logits):
        """(..., V) -> (..., V): what each token's probability is proportional to."""
        logits = tempered(logits, self.temperature)
        if self.top_k and self.top_k < logits.shape[-1]:
            lowest = ops.top_k(logits, self.top_k)[0][..., -1:]
            logits = ops.where(logits >= lowest, logits, LOWEST * 2)
        weights = weights_of(logits)
        return weights if self.top_p == 1.0 else weights_of_nucleus(logits, weights, self.top_p)


GREEDY = Sampling()


def likeliest(logits):
    """(..., V) -> int32 (...): the place of the largest; one that exists, even among NaN."""
    return ops.clip(ops.cast(ops.argmax(logits, axis=-1), "int32"), 0, logits.shape[-1] - 1)


def drawn(weights, uniforms):
    """The tokens at which the cumulated weights (..., V) pass the numbers (...): int32 (...)."""
    cumulated = ops.cumsum(weights, axis=-1)
    reached = cumulated <= uniforms[..., None] * cumulated[..., -1:]
    return ops.sum(ops.cast(reached, "int32"), axis=-1)


def tempered(logits, temperature):
    """Divided by the temperature, the largest 0; a number, or a tensor (..., 1). Float32."""
    logits = ops.cast(logits, "float32") / temperature
    return logits - ops.max(logits, axis=-1, keepdims=True)


def weights_of(logits):
    """What probabilities are proportional to, of logits from `tempered`."""
    return ops.where(logits > LOWEST, ops.exp(logits), 0.0)


def weights_of_nucleus(logits, weights, top_p):
    """`weights`, 0 outside the fewest likeliest tokens that have `top_p` of them: a number, or a tensor (..., 1)."""
    return ops.where(logits >= _lowest_of_nucleus(logits, weights, top_p), weights, 0.0)


def _lowest_of_nucleus(logits, weights, top_p):
    """The highest bound (..., 1) above which `top_p` of the weight still lies, found by halving: no sort of V values."""
    needed = top_p * ops.sum(weights, axis=-1, keepdims=True)

    def halve(_, low, high):
        middle = (low + high) / 2
        enough = ops.sum(ops.where(logits >= middle, weights, 0.0), axis=-1, keepdims=True) >= needed
        return ops.where(enough, middle, low), ops.where(enough, high, middle)

    low = ops.zeros_like(needed) + LOWEST  # `full_like` asks a tensor for its value on torch
    return ops.fori_loop(0, HALVINGS, lambda i, bounds: halve(i, *bounds), (low, ops.ones_like(low)))[0]
