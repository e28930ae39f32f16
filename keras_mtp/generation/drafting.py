"""Drafts: what the far heads say comes after the token that is certain.

All at once, for the heads look at the same state: head_k at the place before the certain token speaks of the place k - 1
behind that one. A wrong draft costs time and never changes the answer, so nothing here has to be exact.
"""

from keras import ops

from keras_mtp.generation.cached_forward import CachedForward


def drafts(forward: CachedForward, states):
    """The likeliest token of every far head.

    Args:
        forward: the layers, heads included.
        states: tensor (K - 1, B, D), the heads' normed states at the place that said the certain token; K at least 2.

    Returns:
        Int tensor (B, K - 1); any ids that the vocabulary has, even where a head says NaN.
    """
    count, batch_size, width = states.shape
    logits = forward.logits(ops.reshape(states, (count * batch_size, width)))
    likeliest = ops.cast(ops.argmax(logits, axis=-1), "int32")
    likeliest = ops.clip(likeliest, 0, logits.shape[-1] - 1)
    return ops.transpose(ops.reshape(likeliest, (count, batch_size)))
