"""Choosing tokens inside a graph, where how to choose is an input: `generation/sampling.py` with tensors."""

from keras_mtp import backend
from keras_mtp.generation.sampling import drawn, likeliest, tempered, weights_of, weights_of_nucleus


def choose(logits, draws):
    """What the model says: the likeliest token where the temperature is 0, else one that is drawn.

    Args:
        logits: (B, R, V). draws: float32 (B, R, 3), of every place the number it is drawn by, the temperature and top_p.

    Returns:
        int32 (B, R).
    """
    tf = backend.tensorflow()
    numbers, temperature, top_p = draws[..., 0], draws[..., 1:2], draws[..., 2:]

    def some_drawn():
        scaled = tempered(logits, tf.where(temperature > 0, temperature, 1.0))
        weights = weights_of(scaled)
        weights = tf.where(top_p < 1, weights_of_nucleus(scaled, weights, top_p), weights)
        return tf.where(temperature[..., 0] > 0, drawn(weights, numbers), likeliest(logits))

    return tf.cond(tf.reduce_any(temperature > 0), some_drawn, lambda: likeliest(logits))
