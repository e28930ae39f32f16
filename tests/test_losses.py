"""The lean loss against a float64 oracle in NumPy and against Keras' own loss on logits."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp.data.batches import Batches
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.losses import LinearCrossEntropy, score_rows
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.unembedding import unembedding_kernel
from tests import tiny
from tests.autodiff import value_and_gradients


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


def _draw(rng, rows, tokens, hidden_dim, vocabulary, masked=0.5):
    hidden = rng.normal(size=(rows, tokens, hidden_dim)).astype("float32")
    targets = rng.integers(0, vocabulary, (rows, tokens)).astype("int32")
    weights = (rng.random((rows, tokens)) >= masked) * rng.random((rows, tokens))
    return hidden, targets, weights.astype("float32")


# JAX compiles every shape: there 50 shapes, each with ten other masks, weights and values.
CASES, BLOCKS = 500, 10
CASES_PER_SHAPE = 10 if keras.config.backend() == "jax" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one case. Every tenth has a single row, every tenth a vocabulary of one."""

    rows: int
    hidden_dim: int
    vocabulary: int
    chunk_rows: int
    tied: bool
    trained: bool

    @classmethod
    def draw(cls, number: int) -> "Shape":
        rng = np.random.default_rng([number, *b"shape"])
        return cls(
            rows=1 if number % 10 == 0 else int(rng.integers(2, 70)),
            hidden_dim=int(rng.integers(1, 33)),
            vocabulary=1 if number % 10 == 1 else int(rng.integers(2, 100)),
            chunk_rows=int(rng.integers(1, 40)),
            tied=bool(rng.integers(2)),
            trained=bool(rng.integers(2)),
        )


@pytest.mark.parametrize("block", range(BLOCKS))
def test_agrees_with_the_oracle_in_every_shape(block):
    """To 2e-6: the loss relative to a mean of one nat or more, a gradient relative to its largest entry."""
    count = CASES // BLOCKS
    for number in range(block * count, (block + 1) * count, CASES_PER_SHAPE):
        shape = Shape.draw(number // CASES_PER_SHAPE)
        layer = _unembedding(shape.vocabulary, shape.hidden_dim, shape.tied, seed=number)
        lean = _with_gradients(layer, shape)
        for draw in range(number, number + CASES_PER_SHAPE):
            _check_against_oracle(lean, layer, shape, draw)


def _with_gradients(layer, shape: Shape):
    lean = LinearCrossEntropy(layer, trained=shape.trained, chunk_rows=shape.chunk_rows)
    return value_and_gradients(
        lambda hidden, targets, weights: lean(targets, hidden, weights), layer.weights[-1:]
    )


def _check_against_oracle(lean, layer, shape: Shape, draw: int) -> None:
    rng = np.random.default_rng([draw, *b"values"])
    masked = (0.0, 0.5, 0.9, 1.0)[draw % 4]
    hidden, targets, weights = _draw(rng, 1, shape.rows, shape.hidden_dim, shape.vocabulary, masked)
    weights /= max(weights.sum(), 1e-9)  # a sum of one, as `keras_mtp.data.batches` makes it
    value, (d_hidden, d_kernel) = lean(hidden, targets, weights)
    loss, *expected = _oracle(hidden, _matrix(layer), targets, weights)
    assert abs(value - loss) <= 2e-6 * max(loss, 1), (shape, draw)
    if not shape.trained:
        expected[1] = np.zeros_like(expected[1])
    for gradient, oracle in zip((d_hidden, d_kernel.T if shape.tied else d_kernel), expected, strict=True):
        assert np.abs(gradient - oracle).max() <= 2e-6 * np.abs(oracle).max(), (shape, draw)


@pytest.mark.parametrize("frozen", [True, False])
def test_trains_as_keras_own_loss_does(frozen):
    """50 steps of `fit`, loss by loss, with prefix and a head; where the trunk is trained, its unembedding too."""
    lean, naive = (_fifty_steps(outputs, frozen) for outputs in ("hidden_states", "logits"))
    assert lean["loss"][-1] < lean["loss"][0] - 0.1
    for name in ("loss", "head_1_loss", "head_2_loss"):
        np.testing.assert_allclose(lean[name], naive[name], rtol=0, atol=1e-5)


def _fifty_steps(outputs: str, frozen: bool) -> dict[str, list[float]]:
    """The losses of every step."""
    model = MTPCausalLM(
        tiny.backbone(num_layers=2),
        prefix_length=3,
        heads=[TransformerHead(name="head_2")],
        freeze_backbone=frozen,
    )
    if outputs == "logits":
        own = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        losses = dict.fromkeys(model.head_names, own)
    else:
        unembedding = model.backbone.token_embedding
        losses = {
            name: LinearCrossEntropy(unembedding, trained=name == "head_1" and not frozen, chunk_rows=16)
            for name in model.head_names
        }
        model = model.training_view()
    model.compile(keras.optimizers.SGD(0.01), loss=losses, loss_weights={"head_1": 1.0, "head_2": 0.3})
    batches = Batches(tiny.encoded(24), heads=tuple(losses), steps=50, batch_size=4, buckets=1)
    return model.fit(batches, epochs=50, steps_per_epoch=1, shuffle=False, verbose=0).history


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


@pytest.mark.skipif(keras.config.backend() != "torch", reason="only torch scales a gradient in place")
def test_a_second_backward_pass_is_refused_and_not_wrong():
    layer = _unembedding(30, 8, True)
    hidden, targets, weights = _draw(np.random.default_rng(5), 3, 7, 8, 30)
    hidden = ops.convert_to_tensor(hidden).requires_grad_()
    loss = 3.0 * LinearCrossEntropy(layer)(targets, hidden, weights)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()
