"""The lengths that batches are padded to: few, since each is a shape to compile, and of little padding."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from keras_mtp.data.encoding import Encoded

Buckets = tuple[float, tuple[int, ...]]  # positions computed, lengths
PADDING = 0.1  # share of the positions computed
MOST_BUCKETS = 8  # each is a shape to compile
MULTIPLE = 8  # lengths are rounded up to this, so that near-equal ones are one shape


def shared_tokens(examples: Sequence[Encoded]) -> int:
    """How many tokens all examples begin with: the chat template's opening. Every example keeps one of its own."""
    first = examples[0].ids
    count = min(len(item.ids) for item in examples) - 1
    for item in examples:
        differs = np.flatnonzero(item.ids[:count] != first[:count])
        count = int(differs[0]) if len(differs) else count
    return count


def bucket_lengths(lengths: np.ndarray, count: int) -> np.ndarray:
    """The at most `count` padded lengths that waste the least, by dynamic programming over the lengths seen.

    Args:
        lengths: int array, tokens of every example.
        count: largest number of buckets.

    Returns:
        Sorted int array; the last one holds the longest example.
    """
    *_, buckets = itertools.islice(_best_buckets(lengths), count)
    return buckets


def _best_buckets(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """The best single bucket, then the best two, and so on."""
    sizes, examples = np.unique(-(-lengths // MULTIPLE) * MULTIPLE, return_counts=True)
    below = np.concatenate([[0], np.cumsum(examples)])  # below[j]: examples in the first j sizes
    # best[j]: positions computed for the first j sizes, and the buckets chosen for them.
    nothing: Buckets = (0.0, ())
    best = [nothing] + [(np.inf, ())] * len(sizes)
    while True:
        best = [
            min([best[j], *(_with_bucket(best[i], below[j] - below[i], sizes[j - 1]) for i in range(j))])
            for j in range(len(sizes) + 1)
        ]
        yield np.array(best[-1][1])


def enough_buckets(lengths: np.ndarray) -> int:
    """The smallest number of buckets that keeps the share of padding under `PADDING`; `MOST_BUCKETS` where none does."""
    for count, buckets in zip(range(1, MOST_BUCKETS), _best_buckets(lengths), strict=False):
        padded = buckets[np.searchsorted(buckets, lengths)].sum()
        if lengths.sum() > (1 - PADDING) * padded:
            return count
    return MOST_BUCKETS


def _with_bucket(buckets: Buckets, examples: int, size: int) -> Buckets:
    """One more bucket of `size` tokens for so many examples."""
    positions, sizes = buckets
    return positions + float(examples) * size, (*sizes, int(size))
