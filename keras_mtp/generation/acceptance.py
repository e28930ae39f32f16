"""Which drafted tokens are kept. Pure functions of integers; tested against a few lines of NumPy.

    row      0         1         2                 K = 3
    token    certain   draft 1   draft 2           what the pass was given
    said     s0        s1        s2                what the model says comes after each of them

s0 is right whatever was drafted. s1 is if draft 1 == s0, s2 if also draft 2 == s1. So a pass yields 1 to K tokens, and
they are those that one pass per token would have said. The same holds if `said` is sampled: a draft is kept exactly when
the sample of its place falls on it, so the law of the samples does not know that there were drafts.
Source: Stern et al. 2018, "Blockwise Parallel Decoding" (arXiv 1811.03115), section 3.
"""

from keras import ops


def agreeing(drafts, said):
    """How many drafts in a row are what the model says.

    Args:
        drafts: int tensor (B, K - 1). said: int tensor (B, K).

    Returns:
        Int tensor (B,), 0 to K - 1.
    """
    if drafts.shape[1] == 0:
        return ops.zeros_like(said[:, 0])
    right = ops.cast(ops.equal(drafts, said[:, :-1]), "int32")
    return ops.sum(ops.cumprod(right, axis=1), axis=1)


def yielded(said, right, room, stop_ids):
    """How many tokens of a pass go into the answer, and whether it ends there.

    Args:
        said: int tensor (B, K). right: int tensor (B,), from `agreeing`.
        room: int tensor (B,), how many tokens the answer may still take, 0 for one that has ended.
        stop_ids: int tensor (N,). The first that comes is the last token of the answer.

    Returns:
        `(count, ended)`: int tensor (B,), 0 to K, and bool tensor (B,).
    """
    is_stop = ops.any(ops.equal(said[:, :, None], stop_ids[None, None]), axis=-1)
    before_stop = ops.sum(ops.cumprod(ops.cast(ops.logical_not(is_stop), "int32"), axis=1), axis=1)
    count = ops.minimum(right + 1, room)
    stopped = before_stop < count
    return ops.where(stopped, before_stop + 1, count), ops.logical_or(stopped, count >= room)
