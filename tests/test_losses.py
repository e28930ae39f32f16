"""The lean loss against a float64 oracle in NumPy and against Keras' own loss on logits."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp.losses import LinearCrossEntropy, score_rows, unembedding_kernel
from tests import tiny


def _unembedding(vocabulary: int, hidden: int, tied: bool, seed: int = 0) -> keras.layers.Layer:
    layer = keras.layers.ReversibleEmbedding(vocabulary, hidden, tie_weights=tied)
    layer.build()
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=v.shape) for v in layer.weights])
    return layer


def _matrix(layer) -> np.ndarray:
    """(D, V) in float64."""
    kernel = ops.convert_to_numpy(unembedding_kernel(layer, "float32")).astype("float64")
    return kernel.T if layer.tie_weights else kernel


def _oracle(hidden, matrix, targets, weights):
    """(loss, d loss / d hidden, d loss / d matrix), all float64."""
    h, w = hidden.reshape(-1, hidden.shape[-1]).astype("float64"), weights.reshape(-1).astype("float64")
    logits = h @ matrix
    top = logits.max(-1, keepdims=True)
    total = top + np.log(np.exp(logits - top).sum(-1, keepdims=True))
    hot = np.eye(matrix.shape[1])[targets.reshape(-1)]
    loss = (w * (total[:, 0] - (logits * hot).sum(-1))).sum()
    d_logits = (np.exp(logits - total) - hot) * w[:, None]
    return loss, (d_logits @ matrix.T).reshape(hidden.shape), h.T @ d_logits


def _loss_and_gradients(loss, layer, hidden, targets, weights):
    """Of the weighted loss, with respect to hidden states and unembedding, by one SGD step of a model."""
    inputs = keras.Input(hidden.shape[1:])
    shift = keras.layers.Dense(hidden.shape[-1], kernel_initializer="zeros", name="shift")
    # A zero Dense on the hidden states plus the states: its kernel's gradient is hidden^T dHidden.
    model = keras.Model(inputs, inputs + shift(inputs))
    start = tiny.arrays([*shift.trainable_variables, *layer.trainable_variables])

    class Whole(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.unembedding = model, layer

        def call(self, x):
            return self.inner(x)

    whole = Whole()
    whole(hidden)
    whole.compile(keras.optimizers.SGD(1.0), loss=loss)
    value = float(whole.train_on_batch(hidden, targets, sample_weight=weights))
    end = tiny.arrays([*shift.trainable_variables, *layer.trainable_variables])
    return value, [s - e for s, e in zip(start, end, strict=True)]


def _draw(rng, rows, tokens, hidden_dim, vocabulary, masked=0.5):
    hidden = rng.normal(size=(rows, tokens, hidden_dim)).astype("float32")
    targets = rng.integers(0, vocabulary, (rows, tokens)).astype("int32")
    weights = (rng.random((rows, tokens)) >= masked) * rng.random((rows, tokens))
    return hidden, targets, weights.astype("float32")


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_the_oracle(seed):
    rng = np.random.default_rng(seed)
    rows, tokens, hidden_dim = (int(n) for n in rng.integers(1, 9, 3))
    vocabulary = int(rng.integers(1, 40))
    layer = _unembedding(vocabulary, hidden_dim, tied=bool(seed % 2), seed=seed)
    hidden, targets, weights = _draw(
        rng, rows, tokens, hidden_dim, vocabulary, masked=(0.0, 0.5, 1.0)[seed % 3]
    )
    trained = seed % 4 < 2
    loss = LinearCrossEntropy(layer, trained=trained, chunk_rows=int(rng.integers(1, 12)))
    value, (d_shift, d_bias, *d_table) = _loss_and_gradients(loss, layer, hidden, targets, weights)
    expected, d_hidden, d_matrix = _oracle(hidden, _matrix_before(layer, d_table), targets, weights)
    assert value == pytest.approx(expected, abs=2e-5, rel=2e-6)
    flat = hidden.reshape(-1, hidden_dim)
    np.testing.assert_allclose(d_shift, flat.T @ d_hidden.reshape(-1, hidden_dim), atol=3e-5)
    np.testing.assert_allclose(d_bias, d_hidden.reshape(-1, hidden_dim).sum(0), atol=3e-5)
    d_unembedding = d_table[-1].T if layer.tie_weights else d_table[-1]
    np.testing.assert_allclose(d_unembedding, d_matrix if trained else np.zeros_like(d_matrix), atol=3e-5)


def _matrix_before(layer, step) -> np.ndarray:
    """The unembedding as it was before the SGD step."""
    return _matrix(layer) + (step[-1].T if layer.tie_weights else step[-1])


@pytest.mark.parametrize("tied", [True, False])
def test_agrees_with_keras_own_loss_on_logits(tied):
    layer = _unembedding(30, 8, tied)
    hidden, targets, weights = _draw(np.random.default_rng(5), 3, 7, 8, 30)
    lean = LinearCrossEntropy(layer, chunk_rows=4, reduction="mean_with_sample_weight")
    keras_own = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    logits = layer(ops.convert_to_tensor(hidden), reverse=True)
    expected = float(ops.convert_to_numpy(keras_own(targets, logits, weights)))
    assert float(ops.convert_to_numpy(lean(targets, hidden, weights))) == pytest.approx(expected, abs=1e-6)


def test_rows_without_weight_change_nothing():
    layer = _unembedding(30, 8, True)
    hidden, targets, weights = _draw(np.random.default_rng(6), 3, 7, 8, 30)
    loss = LinearCrossEntropy(layer, chunk_rows=4)
    garbage = np.where(weights[..., None] > 0, hidden, 1e4).astype("float32")
    value, other = (float(ops.convert_to_numpy(loss(targets, h, weights))) for h in (hidden, garbage))
    assert value == other


def test_without_weights_every_position_counts():
    layer = _unembedding(30, 8, True)
    hidden, targets, _ = _draw(np.random.default_rng(7), 2, 5, 8, 30)
    value = float(ops.convert_to_numpy(LinearCrossEntropy(layer)(targets, hidden)))
    assert value == pytest.approx(_oracle(hidden, _matrix(layer), targets, np.ones((2, 5)))[0], rel=1e-5)


def test_score_rows_counts_nats_and_hits_per_position():
    layer = _unembedding(30, 8, False)
    hidden, targets, weights = _draw(np.random.default_rng(8), 4, 6, 8, 30)
    logits = hidden.astype("float64") @ _matrix(layer)
    targets[0] = logits[0].argmax(-1)
    nats, hits = (ops.convert_to_numpy(v) for v in score_rows(targets, hidden, weights, layer, chunk_rows=5))
    counted = weights > 0
    np.testing.assert_array_equal(hits, (logits.argmax(-1) == targets) & counted)
    total = np.log(np.exp(logits).sum(-1))
    expected = (total - np.take_along_axis(logits, targets[..., None], -1)[..., 0]) * counted
    np.testing.assert_allclose(nats, expected, atol=1e-4)
    assert hits[0].sum() == counted[0].sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"reduction": "mean"}, "`reduction` must be"), ({"chunk_rows": 0}, "`chunk_rows` must be")],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearCrossEntropy(_unembedding(3, 2, True), **arguments)
