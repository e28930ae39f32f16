"""A transformer head that also sees the token just before the one it predicts.

Far ahead, most of what a head cannot know is which token was chosen in between. When it drafts for decoding, that token
is there: `head_1` or the head before has just named it. So this head is given it, and drafts better; in training it is the
text's own.

    head_3 at t      hidden state of t, embedding of token[t + 2]   ->   token[t + 3]

DeepSeek-AI 2024, "DeepSeek-V3 Technical Report" (arXiv 2412.19437, section 2.2); EAGLE (arXiv 2401.15077, section 4.1). As
there, a projection brings norm(hidden) and norm(embedding), side by side, down to D, and a decoder block follows. Two
things differ. Every head reads the trunk's state, where theirs reads the one of the head before: then no head waits for
another, one can be left out or added, and the number of heads at run time is free. And the projection is added to the
hidden state, beginning with zeros: the head starts as exactly a `TransformerHead`, whose block expects its input at
that scale (near 30 in SmolLM2's last block, not 1).
"""

import keras
from keras import ops

from keras_mtp.layers.transformer_head import BlockHead


@keras.saving.register_keras_serializable("keras_mtp")
class SequentialHead(BlockHead):
    """A decoder block fed with the state before the backbone's last block and the embedding of the token before its target.

    As `head_k` it sees, at position t, the embedding of `token[t + k - 1]` and of nothing later. `MTPCausalLM` embeds the
    tokens, and no loss of this head trains the embeddings. At the prefix there is no such token and the embedding is
    zero. Past the end of a row the token is padding, id 0: what the head says there has no target, so count it nowhere.

    The norms before the projection have no scale of their own: the projection has one for every entry.

    Args:
        start: "last_block" (the default), "random" or "zero", see `TransformerHead`. The projection starts at zero.
        attach: "before_last_block" (the default), "last_block" or "default", see `MTPHead`.
        seed: int. Seeds the random start; drawn by NumPy, so it is the same on every backend.
        block: dict of the block's sizes (`BLOCK_ARGUMENTS`), filled in from the backbone when the head is bound.

    Call arguments:
        hidden_states: float tensor (B, T, D), prefix included: the state that it reads.
        next_embeddings: float tensor (B, T, D): for every position the embedding of the token just before its target.

    Returns:
        Float tensor (B, T, D).

    Raises:
        ValueError: `start` or `attach` is no known name; or the head is built with neither sizes nor a backbone.

    Example:

    ```python
    heads = [keras_mtp.SequentialHead(), keras_mtp.SequentialHead()]
    model = keras_mtp.MTPCausalLM(backbone, prefix_length=4, heads=heads)
    ```

    Reference: arXiv 2412.19437, section 2.2, equation 21.
    """

    reads_tokens = True

    def build(self, input_shape):
        hidden_dim = input_shape[-1]
        self.projection = keras.layers.Dense(
            hidden_dim,
            use_bias=False,
            kernel_initializer="zeros",
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build((*input_shape[:-1], 2 * hidden_dim))
        super().build(input_shape)

    def call(self, hidden_states, next_embeddings):
        return self.decoder(self.combined(hidden_states, next_embeddings))

    def advance(self, hidden_states, apply_block, next_embeddings):
        return apply_block(self.decoder, self.combined(hidden_states, next_embeddings))

    def combined(self, hidden_states, next_embeddings):
        """What the block is fed: (B, T, D) and (B, T, D) -> (B, T, D)."""
        both = [self._normed(hidden_states), self._normed(next_embeddings)]
        return hidden_states + self.projection(ops.concatenate(both, axis=-1))

    def _normed(self, x):
        return ops.rms_normalization(x, epsilon=self.decoder.layer_norm_epsilon)
