"""What every further head is: a small network from the trunk's hidden state to one that predicts further ahead.

Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction" (arXiv 2404.19737, section 2):
independent heads on a shared trunk, with the unembedding shared by all. `head_k` predicts the token k places ahead;
`head_1` is the backbone itself, so a list of heads starts with `head_2`.
"""

from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_mtp.quantised import embedded

ATTACHMENTS = ("last_block", "before_last_block")


class MTPHead(keras.layers.Layer):
    """Base of the heads: (B, T, D) hidden states in, (B, T, D) hidden states out.

    What a head returns goes through the backbone's own final norm and unembedding, so a head costs no V x D matrix.
    A head written by the user as `TransformerHead()` knows no sizes; `bind` reads them off the backbone, after which
    the head's config is complete.

    Args:
        attach: "last_block" (read the output of the last block, before the final norm), "before_last_block" (read its input:
            the head then runs parallel to the last block), or "default": what the head's class says in `reads`.

    Raises:
        ValueError: `attach` is no known name.

    A subclass sets `reads`, its default place, and implements `adopt` and `call`. One that sets `reads_tokens` gets a
    second argument: `call(hidden_states, next_embeddings)`, as `SequentialHead` does.

    Example: a head of one's own, twice as wide inside.

    ```python
    @keras.saving.register_keras_serializable("mine")
    class WideHead(keras_mtp.MTPHead):
        def build(self, input_shape):
            self.up = keras.layers.Dense(2 * input_shape[-1], activation="silu")
            self.down = keras.layers.Dense(input_shape[-1], kernel_initializer="zeros")
            self.up.build(input_shape)
            self.down.build((*input_shape[:-1], 2 * input_shape[-1]))
            self.built = True

        def adopt(self, backbone):
            self.build((None, None, backbone.hidden_dim))

        def call(self, hidden_states):
            return hidden_states + self.down(self.up(hidden_states))


    model = keras_mtp.MTPCausalLM(backbone, prefix_length=4, heads=[WideHead()])
    ```
    """

    # The trunk state the head is fed, one of ATTACHMENTS.
    reads: str = "last_block"
    # Whether it also sees, as `head_k` at position t, the embedding of `token[t + k - 1]`, the one before its target.
    reads_tokens: ClassVar[bool] = False

    def __init__(self, attach: str = "default", **kwargs):
        super().__init__(**kwargs)
        if attach not in ("default", *ATTACHMENTS):
            raise ValueError(
                f"`attach` must be one of {('default', *ATTACHMENTS)}. Received: attach={attach!r}"
            )
        self.attach = attach
        if attach != "default":
            self.reads = attach

    def bind(self, backbone: keras.Model, dtype: keras.DTypePolicy) -> None:
        """Takes sizes and first weights from `backbone`. A head that is built already is left as it is.

        Args:
            backbone: the keras-hub Llama backbone that the head will stand behind.
            dtype: the policy the head computes in; its variables should be float32.
        """
        if self.built:
            return
        self.dtype_policy = dtype
        self.adopt(backbone)

    def adopt(self, backbone: keras.Model) -> None:
        """Builds the head for `backbone` and gives it its first weights."""
        raise NotImplementedError

    def advance(self, hidden_states, apply_block, *next_embeddings):
        """As `call`, but `apply_block(block, x)` runs whatever decoder blocks the head is made of.

        Training and decoding arrange a batch's positions each in their own way, which a block's attention must follow, and
        a prefix of keys and values reaches a head by it: those of the last block, which the head runs beside or behind. A
        head without attention does not care.
        """
        return self(hidden_states, *next_embeddings)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "attach": self.attach}


def tokens_ahead(token_ids, places: int):
    """`token_ids[:, t + places]` at t, (B, T) -> (B, T); past the end 0, with which batches are padded as well."""
    return ops.pad(token_ids, ((0, 0), (0, places)))[:, places:]


def next_embeddings(token_embedding, token_ids, prefix_length: int):
    """What a head that `reads_tokens` is given: embeddings that no gradient reaches, zeros for the prefix.

    Args:
        token_embedding: the backbone's. token_ids: int tensor (B, T), moved by `tokens_ahead` already.

    Returns:
        Float tensor (B, P + T, D).
    """
    embeddings = ops.stop_gradient(embedded(token_embedding, token_ids))
    return ops.pad(embeddings, ((0, 0), (prefix_length, 0), (0, 0)))


def random_weights(variables: list[keras.Variable], seed: int) -> list[np.ndarray]:
    """First weights for `variables`: normal(0, 0.02) matrices as in keras-hub's own initialiser, ones for the norms' scales."""
    rng = np.random.default_rng([seed, *b"head"])
    return [
        np.ones(v.shape, "float32") if len(v.shape) == 1 else rng.normal(0.0, 0.02, v.shape).astype("float32")
        for v in variables
    ]
