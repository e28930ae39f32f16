import dataclasses
import warnings

import keras
import numpy as np
import pytest

from keras_mtp.callbacks import StepLog
from keras_mtp.data.batches import Batches
from keras_mtp.errors import UserError
from keras_mtp.evaluation import HeldOutEvaluation
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.metrics import MetricsLog
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe, updated
from keras_mtp.training import train
from keras_mtp.training.optimizers import adamw
from tests import tiny

RECIPE = updated(
    Recipe(name="tiny"),
    {
        "heads.warmup_steps": 5,
        "heads.learning_rate": 0.01,
        "training.steps": 20,
        "training.batch_size": 4,
        "training.learning_rate": 0.05,
        "evaluation.every": 8,
        "data.buckets": 1,
    },
)


def _model(*heads, prefix_length=4, **backbone) -> MTPCausalLM:
    return MTPCausalLM(
        tiny.backbone(**{"num_layers": 2, **backbone}),
        prefix_length=prefix_length,
        prefix_start=[1, 2, 3, 4],
        heads=heads,
    )


def _train(model, folder, callbacks=(), **changes):
    """Runs the tiny recipe; returns the rows of its log."""
    recipe = updated(RECIPE, {key.replace("__", "."): value for key, value in changes.items()})
    log = MetricsLog(folder / "metrics.csv", model.head_names)
    train(
        model, tiny.encoded(40), recipe, log, HeldOutEvaluation(model, tiny.encoded(6, seed=9), 4), callbacks
    )
    log.close()
    return log.rows


def _prefix(model) -> np.ndarray:
    return tiny.arrays([model.prefix_embedding.embeddings])[0]


class Watch(keras.callbacks.Callback):
    """Prefix and head at the beginning of every stage, and how often TensorFlow traced a step."""

    def __init__(self, model):
        super().__init__()
        self.mtp_model, self.at_start, self.traced = model, [], 0

    def on_train_begin(self, logs=None):
        self.at_start.append((_prefix(self.mtp_model), tiny.arrays(self.mtp_model.heads[0].variables)))
        call = self.model.call

        def counted(*arguments, **options):
            self.traced += 1
            return call(*arguments, **options)

        self.model.call = counted


@pytest.fixture(scope="module", params=[True, False], ids=["heads frozen", "heads trained"])
def both_stages(request, tmp_path_factory):
    """A whole training, shared by the tests that look at it: `(freeze, model, backbone's start, watch, rows)`."""
    model = _model(TransformerHead())
    backbone, watch = tiny.arrays(model.backbone.variables), Watch(model)
    folder = tmp_path_factory.mktemp("training")
    rows = _train(model, folder, callbacks=[watch], heads__freeze=request.param)
    return request.param, model, backbone, watch, rows


def test_both_stages_lower_the_loss(both_stages):
    *_, rows = both_stages
    warmup = [row for row in rows if row["stage"] == "warmup"]
    joint = [row for row in rows if row["stage"] == "joint"]
    assert [row["step"] for row in warmup] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in joint] == list(range(21))
    assert "head_1_loss" not in warmup[0] and warmup[-1]["head_2_loss"] < warmup[0]["head_2_loss"]
    evaluated = {row["step"]: row["held_out_head_1_loss"] for row in joint if "held_out_head_1_loss" in row}
    assert list(evaluated) == [0, 8, 16, 20]
    assert evaluated[20] < evaluated[0] - 0.3


def test_frozen_weights_keep_every_byte_and_the_others_move(both_stages):
    _, model, backbone, watch, _ = both_stages
    for value, old in zip(tiny.arrays(model.backbone.variables), backbone, strict=True):
        assert value.tobytes() == old.tobytes()
    prefix, head = watch.at_start[0]
    assert not np.array_equal(_prefix(model), prefix)
    for value, old in zip(tiny.arrays(model.heads[0].variables), head, strict=True):
        assert not np.array_equal(value, old), "the warm-up trains every weight of a head"


def test_warm_up_leaves_the_prefix_alone_and_freeze_keeps_the_heads(both_stages):
    freeze, model, _, watch, _ = both_stages
    (prefix_at_start, head_at_start), (prefix_at_joint, head_at_joint) = watch.at_start
    np.testing.assert_array_equal(prefix_at_start, prefix_at_joint)
    assert not np.array_equal(head_at_start[0], head_at_joint[0])
    for value, old in zip(tiny.arrays(model.heads[0].variables), head_at_joint, strict=True):
        assert np.array_equal(value, old) == freeze


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="the second trace is TensorFlow's")
def test_a_step_is_traced_once(both_stages):
    *_, watch, _ = both_stages
    assert watch.traced == len(watch.at_start) == 2


def test_a_warm_up_ends_once_the_heads_get_no_better(tmp_path):
    """With a rate of 0 they never do: the first evaluation sets the mark, and the second is one too many."""
    rows = _train(
        _model(TransformerHead()),
        tmp_path,
        heads__learning_rate=0.0,
        heads__warmup_steps=12,
        heads__warmup_patience=1,
        evaluation__every=2,
        training__steps=1,
    )
    assert [row["step"] for row in rows if row["stage"] == "warmup"] == [1, 2, 3, 4]
    assert all(
        "held_out_head_2_loss" in row for row in rows if row["stage"] == "warmup" and row["step"] % 2 == 0
    )
    assert [row["step"] for row in rows if row["stage"] == "joint"] == [0, 1]


def test_the_rate_of_a_warm_up_that_may_end_early_does_not_fall():
    recipe = updated(RECIPE, {"training.learning_rate_warmup": 0.1})
    falling, staying = (adamw(recipe, 0.5, 40, "heads", falls)._learning_rate for falls in (True, False))
    for step in (0, 2, 4):
        assert float(falling(step)) == pytest.approx(float(staying(step)))
    assert [round(float(staying(step)), 6) for step in (4, 20, 40)] == [0.5] * 3
    assert float(falling(20)) < 0.4 and float(falling(40)) == pytest.approx(0.0)


def test_accumulation_changes_nothing(both_stages, tmp_path):
    freeze, whole, _, _, rows = both_stages
    if freeze:
        pytest.skip("once is enough")
    split = _model(TransformerHead())
    split_rows = _train(
        split, tmp_path, heads__freeze=False, training__accumulation=4, training__compile=False
    )
    assert [row["step"] for row in rows] == [row["step"] for row in split_rows]
    for row, other in zip(rows, split_rows, strict=True):
        if "head_2_loss" in row:
            assert row["head_2_loss"] == pytest.approx(other["head_2_loss"], abs=2e-3)
    np.testing.assert_allclose(_prefix(whole), _prefix(split), atol=5e-3)


def test_a_steps_loss_is_exact_not_a_running_mean(tmp_path):
    """TensorBoard looks on, and Keras does not warn of the last stretch, which is shorter."""
    model = _model()
    board = keras.callbacks.TensorBoard(str(tmp_path / "board"), write_graph=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Your input ran out of data")
        rows = _train(model, tmp_path, [board], training__learning_rate=0.0, heads__count=0)
    assert list((tmp_path / "board").rglob("events*"))
    batches = Batches(tiny.encoded(40), heads=("head_1",), steps=20, batch_size=4, buckets=1)
    view = model.training_view()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    for step in (0, 7, 13):
        ids, targets, weights = batches[step]
        logits = model.backbone.token_embedding(view(ids)["head_1"], reverse=True)
        expected = float(keras.ops.convert_to_numpy(loss(targets["head_1"], logits, weights["head_1"])))
        assert rows[step + 1]["head_1_loss"] == pytest.approx(expected, rel=1e-5)


def test_detached_heads_are_a_true_control(tmp_path):
    """Heads on, their gradient cut: after 20 steps the prefix is that of a run without heads."""
    settings = {
        "heads__count": 2,
        "heads__freeze": False,
        "heads__warmup_steps": 0,
        "heads__weight": 1.0,
        "training__learning_rate": 5e-3,
    }
    without = _model()
    _train(without, tmp_path, **(settings | {"heads__count": 0}))
    detached = _model(TransformerHead(), LinearHead())
    _train(detached, tmp_path, heads__detach=True, **settings)
    attached = _model(TransformerHead(), LinearHead())
    _train(attached, tmp_path, **settings)
    if keras.config.backend() != "jax":
        np.testing.assert_array_equal(_prefix(detached), _prefix(without))
    assert _relative_distance(_prefix(detached), _prefix(without)) < 1e-6
    assert _relative_distance(_prefix(attached), _prefix(without)) > 1e-3


def _relative_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_heads_for_speed_are_all_that_learns(tmp_path):
    model = _model(SequentialHead(), LinearHead())
    frozen = [*model.backbone.variables, *model.prefix_embedding.variables]
    before, heads = tiny.arrays(frozen), tiny.arrays(model.heads[0].variables + model.heads[1].variables)
    rows = _train(model, tmp_path, heads__purpose="speed", heads__freeze=False, heads__count=2)
    for value, old in zip(tiny.arrays(frozen), before, strict=True):
        assert value.tobytes() == old.tobytes()
    for value, old in zip(
        tiny.arrays(model.heads[0].variables + model.heads[1].variables), heads, strict=True
    ):
        assert not np.array_equal(value, old)
    assert [(row["stage"], row["step"]) for row in rows] == [("heads", step) for step in range(21)]
    assert not any("head_1_loss" in row for row in rows)
    judged = [row for row in rows if "held_out_head_1_loss" in row]
    assert [row["step"] for row in judged] == [0, 8, 16, 20]
    assert len({row["held_out_head_1_loss"] for row in judged}) == 1
    for name in ("head_2", "head_3"):
        assert judged[-1][f"held_out_{name}_loss"] < judged[0][f"held_out_{name}_loss"] - 0.3


def test_heads_for_speed_weigh_alike_whatever_the_weight_beside_head_1(tmp_path):
    models = [_model(LinearHead(), LinearHead()) for _ in range(2)]
    for model, weight in zip(models, (0.1, 3.0), strict=True):
        changes = {"heads__weight": weight, "training__clip_norm": 0.0, "training__steps": 3}
        _train(model, tmp_path, heads__purpose="speed", heads__freeze=False, heads__count=2, **changes)
    for one, other in zip(*(tiny.arrays(model.trainable_variables) for model in models), strict=True):
        np.testing.assert_array_equal(one, other)


def test_clipping_is_per_group(tmp_path):
    """A tiny norm for everything: each group still moves by its own learning rate."""
    model = _model(LinearHead())
    before = _prefix(model)
    _train(model, tmp_path, heads__freeze=False, training__clip_norm=1e-6, training__epsilon=1e-12)
    assert np.abs(_prefix(model) - before).max() > 0.01


def test_user_callbacks_see_the_held_out_loss_and_can_stop(tmp_path):
    logs_seen = []

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs_seen.append(dict(logs))
            self.model.stop_training = True

    rows = _train(_model(), tmp_path, callbacks=[Stop()], heads__count=0)
    assert len(logs_seen) == 1 and "val_head_1_loss" in logs_seen[0]
    assert rows[-1]["step"] == 8


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(UserError, match="trains nothing"):
        _train(_model(prefix_length=0), tmp_path, heads__count=0)


def test_mixed_bfloat16_trains(tmp_path):
    model = MTPCausalLM(
        tiny.backbone(num_layers=2, dtype="mixed_bfloat16"), prefix_length=4, heads=[TransformerHead()]
    )
    rows = _train(model, tmp_path, heads__freeze=False)
    assert rows[-1]["held_out_head_1_loss"] < rows[5]["held_out_head_1_loss"]


def test_recipe_of_the_test_is_small():
    assert dataclasses.asdict(RECIPE)["training"]["steps"] == 20


def test_step_log_follows_the_stage(tmp_path):
    log = MetricsLog(tmp_path / "m.csv", ("head_1",))
    batches = Batches(tiny.encoded(8), heads=("head_1",), steps=2, batch_size=4)
    step_log = StepLog(log, "joint", batches)
    step_log.set_model(keras.Sequential([keras.layers.Dense(1)]))
    for index in range(2):
        step_log.on_train_batch_begin(index)
        step_log.on_train_batch_end(index, {"loss": 1.5 - index})
    log.close()
    assert [(row["step"], row["head_1_loss"]) for row in log.rows] == [(1, 1.5), (2, 0.5)]
    assert step_log.model.stop_training


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="TensorFlow keeps what it has traced")
def test_a_trained_model_leaves_no_graph(tmp_path):
    """Nor does upstream's leak remain unseen: once TensorFlow forgets by itself, `_gradients_forgotten` of backend/fit.py can go."""
    import gc

    import tensorflow as tf
    from tensorflow.python.framework.func_graph import FuncGraph
    from tensorflow.python.framework.ops import gradient_registry

    def graphs() -> int:
        gc.collect()
        return sum(isinstance(thing, FuncGraph) for thing in gc.get_objects())

    def leaking(x):
        gradient = keras.ops.custom_gradient(lambda x: (x * x, lambda upstream: upstream * 3 * x))
        return keras.ops.sum(gradient(x))

    _train(_model(), tmp_path, heads__count=0)
    before, names = graphs(), set(gradient_registry._registry)
    _train(_model(TransformerHead()), tmp_path)
    assert graphs() <= before
    tf.function(leaking)(keras.ops.ones(2))
    left = gradient_registry._registry.keys() - names
    assert [name.partition("-")[0] for name in left] == ["CustomGradient"]


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="the limit is TensorFlow's")
def test_upstream_still_fixes_shapes():
    """Once Keras takes batches of any length from a PyDataset, `backend.fit_input` can go."""

    class Growing(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return np.zeros((2, 4 if index < 2 else 8, 1)), np.zeros((2, 1))

    model = keras.Sequential([keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(Exception, match="shape"):
        model.fit(Growing(), verbose=0)
