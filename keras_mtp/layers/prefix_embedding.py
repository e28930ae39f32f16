"""Prompt tuning: a few trained vectors in front of the tokens' embeddings.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning" (arXiv 2104.08691). A prefix that
starts from real tokens trains far better than one that starts from noise (section 3.2 there).
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_mtp.quantised import table_rows


@keras.saving.register_keras_serializable("keras_mtp")
class PrefixEmbedding(keras.layers.Layer):
    """Puts `length` trained vectors in front of a sequence of embeddings.

    The vectors are float32 variables whatever the compute dtype of the model: Adam's steps vanish in bfloat16.

    Args:
        length: int. Number of prefix vectors, P.

    Call arguments:
        embeddings: float tensor (B, T, D), the embeddings of the tokens.

    Returns:
        Float tensor (B, P + T, D): the prefix, then the tokens, in the layer's compute dtype.

    Raises:
        ValueError: `length` is below 1.

    Example:

    ```python
    prefix = keras_mtp.PrefixEmbedding(16)
    prefix(keras.ops.zeros((2, 10, 64))).shape  # (2, 26, 64)
    ```

    Reference: arXiv 2104.08691, section 3.
    """

    def __init__(self, length: int, **kwargs):
        super().__init__(**kwargs)
        if length < 1:
            raise ValueError(f"`length` must be at least 1. Received: length={length}")
        self.length = length

    def build(self, input_shape):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.length, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.02, seed=0),
            dtype="float32",
        )
        self.built = True

    def call(self, embeddings):
        batch_size = ops.shape(embeddings)[0]
        prefix = ops.broadcast_to(
            ops.expand_dims(ops.cast(self.embeddings, embeddings.dtype), 0),
            (batch_size, *self.embeddings.shape),
        )
        return ops.concatenate([prefix, embeddings], axis=1)

    def compute_output_shape(self, input_shape):
        batch_size, tokens, hidden_dim = input_shape
        return (batch_size, None if tokens is None else tokens + self.length, hidden_dim)

    def get_config(self):
        return {**super().get_config(), "length": self.length}


def start_vectors(embedding, length: int, start: str | Sequence[int], seed: int) -> np.ndarray:
    """The first value of a prefix, drawn by NumPy so that every backend starts alike.

    Args:
        embedding: the backbone's `ReversibleEmbedding`. Only what is needed of its table (V, D) is copied.
        length: number of prefix vectors, P.
        start: token ids, repeated or cut to P (start from a text); "vocabulary" (P different tokens drawn evenly);
            or "random" (normal, with the table's mean and standard deviation per dimension).
        seed: seeds the draw.

    Returns:
        Float32 array (P, D).

    Raises:
        ValueError: `start` is no known name, or an empty list of ids.
    """
    rng = np.random.default_rng([seed, *b"prefix"])
    if not isinstance(start, str):
        if not len(start):
            raise ValueError("`start` must hold at least one token id. Received an empty sequence.")
        return table_rows(embedding, np.resize(np.asarray(start, "int64"), length))
    vocabulary = embedding.input_dim
    if start == "vocabulary":
        return table_rows(embedding, rng.choice(vocabulary, size=length, replace=length > vocabulary))
    if start == "random":
        table = table_rows(embedding, np.arange(vocabulary))
        noise = rng.standard_normal((length, embedding.output_dim))
        return (table.mean(0) + noise * table.std(0)).astype("float32")
    raise ValueError(f'`start` must be "vocabulary", "random" or token ids. Received: start={start!r}')
