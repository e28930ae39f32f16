"""Drafts: what the far heads say comes after the token that is certain.

All at once, for the heads look at the same state: head_k at the place before the certain token speaks of the place k - 1
behind that one. A wrong draft costs time and never changes the answer, so nothing here has to be exact.
"""

from keras import ops

from keras_mtp.generation.cached_forward import CachedForward


class Drafter:
    """Drafts K - 1 tokens for every row.

    Args:
        forward: the layers, heads included.
    """

    def __init__(self, forward: CachedForward):
        self.forward = forward
        self.count = len(forward.heads)

    def __call__(self, states, token):
        """The likeliest token of every far head.

        Args:
            states: tensor (K - 1, B, D), the heads' normed states at the place that said `token`.
            token: int tensor (B,), the certain token. Parallel heads do not need it.

        Returns:
            Int tensor (B, K - 1); any ids that the vocabulary has, even where a head says NaN.
        """
        if not self.count:
            return ops.zeros((ops.shape(token)[0], 0), "int32")
        batch_size, width = token.shape[0], states.shape[-1]
        logits = self.forward.logits(ops.reshape(states, (self.count * batch_size, width)))
        drafts = ops.cast(ops.argmax(logits, axis=-1), "int32")
        drafts = ops.clip(drafts, 0, logits.shape[-1] - 1)
        return ops.transpose(ops.reshape(drafts, (self.count, batch_size)))
