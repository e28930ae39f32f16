"""How likely a model finds the tokens of texts, as a graph in which the logits of a whole text never exist at once.

B rows, T tokens, N likeliest tokens.
"""

from typing import Any

import keras
from keras import ops

from keras_mtp import backend
from keras_mtp.export.in_graph import InGraph
from keras_mtp.export.served_model import LIKELIEST

CHUNK_TOKENS = 64  # of every row, whose logits are made at once


class Score:
    """A function for a `tf.function`.

    Args:
        model: an `MTPCausalLM`. in_graph: of it.
    """

    def __init__(self, model: keras.Model, in_graph: InGraph):
        self.view, self.in_graph = model.training_view(), in_graph
        self.likeliest = min(LIKELIEST, model.backbone.vocabulary_size)

    def __call__(self, token_ids) -> dict[str, Any]:
        """Scores texts.

        Args:
            token_ids: int32 (B, T), padded on the right.

        Returns:
            `logprobs`: float32 (B, T), at t in nats of the token after it; of token 0 at the last. `likeliest`: int32
            (B, T, N), at t the N likeliest tokens after it, `likeliest_logprobs`: float32 (B, T, N).
        """
        tf = backend.tensorflow()
        states = self.view(self.in_graph.known(token_ids), training=False)["head_1"]
        count, length = tf.unstack(tf.shape(token_ids))
        behind = -length % CHUNK_TOKENS
        chunks = (length + behind) // CHUNK_TOKENS
        following = tf.pad(token_ids[:, 1:], [[0, 0], [0, behind + 1]])

        def in_chunks(x, *size):
            return tf.transpose(
                tf.reshape(x, [count, chunks, CHUNK_TOKENS, *size]), [1, 0, 2, *[3 for _ in size]]
            )

        def scored(chunk):
            states, following = chunk
            logits = ops.cast(self.in_graph.drafting.forward.logits(states), "float32")
            logprobs = tf.nn.log_softmax(logits)
            best = tf.math.top_k(logprobs, self.likeliest)
            return tf.gather(logprobs, following, batch_dims=2), best.indices, best.values

        signature = (
            tf.TensorSpec((None, CHUNK_TOKENS), "float32"),
            tf.TensorSpec((None, CHUNK_TOKENS, self.likeliest), "int32"),
            tf.TensorSpec((None, CHUNK_TOKENS, self.likeliest), "float32"),
        )
        states = in_chunks(tf.pad(states, [[0, 0], [0, behind], [0, 0]]), states.shape[-1])
        found = tf.map_fn(
            scored, (states, in_chunks(following)), fn_output_signature=signature, parallel_iterations=1
        )
        whole = [
            tf.reshape(
                tf.transpose(x, [1, 0, 2, *range(3, len(x.shape))]), [count, length + behind, *x.shape[3:]]
            )[:, :length]
            for x in found
        ]
        return dict(zip(("logprobs", "likeliest", "likeliest_logprobs"), whole, strict=True))
