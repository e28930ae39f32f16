"""The gradients that a probe reports are those of Keras' own losses on the logits, and looking changes nothing."""

import keras
import numpy as np
import pytest

from keras_mtp.data.batches import Batches
from keras_mtp.data.lengths import shared_tokens
from keras_mtp.errors import UserError
from keras_mtp.evaluation import HeldOutEvaluation
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.losses import LinearCrossEntropy
from keras_mtp.metrics import MetricsLog, probe_columns
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.probes import GradientProbe
from keras_mtp.recipe import Recipe, updated
from keras_mtp.training import train
from tests import tiny
from tests.autodiff import value_and_gradients

RECIPE = updated(
    Recipe(name="tiny"),
    {
        "heads.count": 2,
        "heads.warmup_steps": 1,
        "heads.freeze": False,
        "training.steps": 4,
        "training.batch_size": 4,
        "training.accumulation": 2,
        "training.compile": False,
        "evaluation.every": 4,
        "data.buckets": 1,
    },
)


def _model(*heads, **backbone) -> MTPCausalLM:
    return MTPCausalLM(
        tiny.backbone(**{"num_layers": 2, **backbone}),
        prefix_length=3,
        prefix_start=[1, 2, 3],
        heads=heads or [TransformerHead(), LinearHead()],
    )


def _examples(seed: int = 0):
    """They begin with the same two tokens, as a chat template makes them."""
    items = tiny.encoded(24, seed=seed, shortest=8)
    for item in items:
        item.ids[:2] = (7, 8)
    return items


def _probe(model, batches, every=1, weights=None, **view) -> GradientProbe:
    losses = {name: LinearCrossEntropy(model.backbone.token_embedding) for name in batches.heads}
    view = model.training_view(shared_tokens=shared_tokens(batches.examples), **view)
    return GradientProbe(view, losses, batches, weights or model.prefix_embedding.variables, every)


def _independent(model, batch, head: str) -> np.ndarray:
    """Of Keras' own loss on the functional model's logits, with respect to the prefix."""
    ids, targets, weights = batch
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    def value(scale, ids):
        return scale * loss(targets[head], model(ids)[head], weights[head])

    _, (_, gradient) = value_and_gradients(value, model.prefix_embedding.variables)(np.float32(1), ids)
    return gradient.astype("float64").ravel()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_is_the_gradient_of_keras_own_loss_on_the_logits(accumulation):
    """Whatever the weight of a head's loss in that step, and however the batch is cut."""
    model = _model(TransformerHead(), SequentialHead(), LinearHead())
    options = {"heads": model.head_names, "steps": 4, "batch_size": 4, "buckets": 1}
    batches = Batches(_examples(), accumulation=accumulation, schedule="ramp_up", **options)
    whole = Batches(_examples(), **options)
    row = _probe(model, batches)(3)
    assert sorted(row) == sorted(probe_columns(model.head_names))
    expected = {name: _independent(model, whole[2], name) for name in model.head_names}
    first = expected["head_1"]
    for name, gradient in expected.items():
        norm = np.linalg.norm(gradient)
        assert norm > 1e-3 and row[f"{name}_gradient_norm"] == pytest.approx(norm, rel=1e-3)
        if name != "head_1":
            cosine = gradient @ first / norm / np.linalg.norm(first)
            assert row[f"{name}_gradient_cosine"] == pytest.approx(cosine, abs=1e-3)


def test_a_step_along_the_gradient_changes_the_loss_by_as_much():
    """Central differences: along its own gradient a loss rises by the norm, and head_1's by the cosine's share of its own."""
    model = _model(LinearHead())
    batches = Batches(_examples(), heads=model.head_names, steps=1, batch_size=4, buckets=1)
    row = _probe(model, batches)(1)
    ids, targets, weights = batches[0]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    prefix = model.prefix_embedding.embeddings
    start, direction = tiny.arrays([prefix])[0], _independent(model, batches[0], "head_2")
    direction = (direction / np.linalg.norm(direction)).reshape(start.shape)
    found = {}
    for sign in (1, -1):
        prefix.assign(start + sign * 0.01 * direction)
        logits = model(ids)
        found[sign] = {name: float(loss(targets[name], logits[name], weights[name])) for name in logits}
    slope = {name: (found[1][name] - found[-1][name]) / 0.02 for name in model.head_names}
    assert slope["head_2"] == pytest.approx(row["head_2_gradient_norm"], rel=0.02)
    share = row["head_2_gradient_cosine"] * row["head_1_gradient_norm"]
    assert slope["head_1"] == pytest.approx(share, rel=0.02)


def test_a_detached_head_shows_zero_and_the_others_as_before():
    model = _model()
    batches = Batches(_examples(), heads=model.head_names, steps=2, batch_size=4, buckets=1)
    attached, detached = _probe(model, batches)(1), _probe(model, batches, detach=True)(1)
    assert detached["head_1_gradient_norm"] == pytest.approx(attached["head_1_gradient_norm"], rel=1e-4)
    for k in (2, 3):
        assert detached[f"head_{k}_gradient_norm"] == detached[f"head_{k}_gradient_cosine"] == 0.0
        assert attached[f"head_{k}_gradient_norm"] > 1e-3
    for head in model.heads:
        head.trainable = False  # as after a warm-up: nothing in the head's loss is trained
    assert _probe(model, batches, detach=True)(1)["head_2_gradient_norm"] == 0.0


def test_all_trained_weights_outside_the_heads_are_one_long_vector():
    model = _model(LinearHead())
    batches = Batches(_examples(), heads=model.head_names, steps=1, batch_size=4, buckets=1)
    model.backbone.trainable = True
    kernels = [block._feedforward_gate_dense.kernel for block in model.backbone.transformer_layers]
    both, *each = (
        _probe(model, batches, weights=weights)(1) for weights in (kernels, *([k] for k in kernels))
    )
    squares = sum(row["head_2_gradient_norm"] ** 2 for row in each)
    assert both["head_2_gradient_norm"] == pytest.approx(squares**0.5, rel=1e-4)


def _trained(folder, **changes) -> tuple:
    """Rows of the log, and all weights, after a training of the tiny recipe."""
    model = _model()
    recipe = updated(RECIPE, {key.replace("__", "."): value for key, value in changes.items()})
    log = MetricsLog(folder / "metrics.csv", model.head_names, probe_columns(model.head_names))
    train(model, _examples(), recipe, log, HeldOutEvaluation(model, _examples(9)[:3], 4))
    log.close()
    return log.rows, tiny.arrays(model.variables)


def test_looking_changes_nothing(tmp_path):
    rows, weights = _trained(tmp_path)
    probed_rows, probed_weights = _trained(tmp_path, training__probe_every=2)
    for row, probed in zip(rows, probed_rows, strict=True):
        for name in [column for column in row if column.endswith(("_loss", "_top1"))]:
            assert row[name] == probed[name], "to the last digit"
    for value, probed_value in zip(weights, probed_weights, strict=True):
        assert value.tobytes() == probed_value.tobytes()
    measured = {row["step"] for row in probed_rows if "head_2_gradient_cosine" in row}
    assert measured == {1, 2, 4} and all(
        row["stage"] == "joint" for row in probed_rows if "head_1_gradient_norm" in row
    )


def test_remat_and_mixed_precision_are_probed_too():
    def probed(dtype="float32", **view) -> dict:
        model = _model(LinearHead(), dtype=dtype)
        batches = Batches(_examples(), heads=model.head_names, steps=1, batch_size=4, buckets=1)
        return _probe(model, batches, **view)(1)

    exact, again, rounded = probed(), probed(remat=True), probed("mixed_bfloat16")
    assert again == pytest.approx(exact, rel=1e-3)
    assert rounded["head_2_gradient_norm"] == pytest.approx(exact["head_2_gradient_norm"], rel=0.1)


def test_a_run_that_trains_only_heads_has_nothing_to_probe():
    with pytest.raises(UserError, match=r"`training\.probe_every` must be 0 where only heads are trained"):
        updated(RECIPE, {"training.probe_every": 1, "prefix.length": 0})
    with pytest.raises(UserError, match=r"`training\.probe_every` must be 0 with `heads\.purpose=speed`"):
        updated(RECIPE, {"training.probe_every": 1, "heads.purpose": "speed"})
