"""The best weights and the end of patience; `test_training.py` holds the losses that the other callbacks log."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_mtp.callbacks import BestHeldOut, Plateau, StepLog
from keras_mtp.data.batches import Batches
from keras_mtp.evaluation import HeadScore, HeldOutEvaluation
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.metrics import MetricsLog
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe, updated
from keras_mtp.training import train
from tests import tiny

RECIPE = updated(
    Recipe(name="tiny"),
    {
        "heads.warmup_steps": 2,
        "heads.freeze": False,
        "training.steps": 20,
        "training.batch_size": 4,
        "training.learning_rate_warmup": 0.0,
        "evaluation.every": 4,
        "data.buckets": 1,
    },
)


class Snapshots(keras.callbacks.Callback):
    """Copies prefix and head at the end of every epoch, as a user's callback would."""

    def __init__(self, mtp_model):
        super().__init__()
        self.mtp_model, self.taken = mtp_model, {}

    def on_epoch_end(self, epoch, logs=None):
        if "val_head_1_loss" in logs:
            _ = self.model
            self.taken[4 * (epoch + 1)] = _trained(self.mtp_model)


def _trained(model) -> list[np.ndarray]:
    return [np.array(a) for a in tiny.arrays([*model.prefix_embedding.variables, *model.heads[0].variables])]


def _held_out():
    """Answers that follow no rule: learning the rule of the training examples makes them worse in the end."""
    rng = np.random.default_rng(9)
    return [
        dataclasses.replace(item, ids=rng.integers(0, tiny.VOCABULARY, len(item.ids)).astype("int32"))
        for item in tiny.encoded(6, seed=9)
    ]


def _iterations(trained) -> set[int]:
    variables = trained.optimizer.variables
    return {int(keras.ops.convert_to_numpy(v.value)) for v in variables if v.path.endswith("iteration")}


def _train(folder, **changes):
    recipe = updated(RECIPE, {key.replace("__", "."): value for key, value in changes.items()})
    model = MTPCausalLM(
        tiny.backbone(num_layers=2), prefix_length=4, prefix_start=[1, 2, 3, 4], heads=[TransformerHead()]
    )
    log = MetricsLog(folder / "metrics.csv", model.head_names)
    judge = HeldOutEvaluation(model, _held_out(), 4)
    snapshots = Snapshots(model)
    trained = train(model, tiny.encoded(40), recipe, log, judge, [snapshots])
    log.close()
    losses = {r["step"]: r["held_out_head_1_loss"] for r in log.rows if "held_out_head_1_loss" in r}
    return model, trained, losses, snapshots.taken, judge


@functools.cache
def _finished(keep: str) -> tuple:
    """A whole training that gets worse in the end."""
    with tempfile.TemporaryDirectory() as folder:
        return _train(Path(folder), training__keep=keep, training__learning_rate=0.1)


def test_the_kept_weights_are_those_of_the_best_evaluation_bit_for_bit():
    model, trained, losses, taken, judge = _finished("best")
    best = min(losses, key=losses.get)
    assert best not in (0, 20), f"no test of anything: {losses}"
    assert (trained.steps, trained.kept_step) == (20, best)
    for value, expected in zip(_trained(model), taken[best], strict=True):
        assert value.tobytes() == expected.tobytes()
    assert not np.array_equal(_trained(model)[0], taken[20][0])
    assert judge()["head_1"].loss == losses[best]
    assert _iterations(trained) == {best}


def test_the_last_weights_are_kept_otherwise():
    model, trained, _, taken, _ = _finished("last")
    assert (trained.steps, trained.kept_step) == (20, 20)
    for value, expected in zip(_trained(model), taken[20], strict=True):
        assert value.tobytes() == expected.tobytes()


def test_a_scheduled_heads_loss_is_logged_without_its_weight(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv", ("head_1", "head_2"))
    batches = Batches(tiny.encoded(8), heads=("head_1", "head_2"), steps=4, batch_size=4, schedule="decay")
    steps = StepLog(log, "joint", batches)
    steps.set_model(keras.Sequential())
    for batch, share in enumerate((1.0, 0.75, 0.5, 0.25)):
        steps.on_train_batch_begin(batch)
        steps.on_train_batch_end(batch, {"loss": 0.0, "head_1_loss": 2.0, "head_2_loss": 3.0 * share})
    log.close()
    assert [(row["head_1_loss"], row["head_2_loss"]) for row in log.rows] == [(2.0, 3.0)] * 4


@pytest.mark.parametrize(
    ("losses", "patience", "ends_after"),
    [
        ([9.0, 8.0, 7.0, 6.0], 1, None),
        ([9.0, 8.95, 7.0, 6.0], 1, 2),  # a fall by less than 1 %
        ([9.0, 8.95, 8.0, 7.95, 7.93], 2, 5),
        ([9.0, float("nan"), float("nan")], 2, 3),
    ],
)
def test_plateau(tmp_path, losses, patience, ends_after):
    log = MetricsLog(tmp_path / "metrics.csv", ("head_1", "head_2", "head_3"))
    plateau = Plateau(log, ("head_2", "head_3"), patience)
    model = keras.Sequential()
    model.stop_training = False
    plateau.set_model(model)
    ended = None
    for epoch, loss in enumerate(losses, start=1):
        log.step("warmup", epoch)
        log.latest.update(
            held_out_head_1_loss=1.0, held_out_head_2_loss=loss / 3, held_out_head_3_loss=2 * loss / 3
        )
        plateau.on_epoch_end(epoch)
        ended = ended or (epoch if model.stop_training else None)
    assert ended == ends_after


def test_remembering_changes_nothing_about_the_training():
    assert _finished("last")[2] == _finished("best")[2]


def test_the_start_counts_and_patience_ends_a_run_that_gets_no_better(tmp_path):
    rates = {"training__learning_rate": 0.0, "heads__learning_rate": 0.0}
    model, trained, losses, _, _ = _train(tmp_path, training__keep="best", training__patience=2, **rates)
    assert list(losses) == [0, 4, 8]
    assert (trained.steps, trained.kept_step) == (8, 0) and _iterations(trained) == {0}
    table = tiny.arrays([model.backbone.token_embedding.embeddings])[0]
    np.testing.assert_array_equal(_trained(model)[0], table[[1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("losses", "patience", "stops_after", "best"),
    [
        ([1.0, 2.0, 1.9, 1.8], 3, 3, 0),  # better each time, never as good as before training
        ([1.0, 2.0], 1, 1, 0),  # the first evaluation may be enough
        ([1.0, 1.1, 0.9, 1.2, 1.3], 2, 4, 2),  # a new best begins the count anew
        ([1.0, 1.0, 1.0], 2, 2, 0),  # as good is not better
        ([1.0, float("nan"), 0.5], 2, None, 2),
        ([float("nan"), float("nan"), 0.5], 0, None, 2),
        ([3.0, 4.0, 5.0, 6.0, 7.0], 0, None, 0),  # 0 never stops
    ],
)
def test_patience(tmp_path, losses, patience, stops_after, best):
    log = MetricsLog(tmp_path / "metrics.csv", ("head_1",))
    weight = keras.Variable(0.0)
    callback = BestHeldOut(log, [weight], patience)
    callback.set_model(keras.Sequential([keras.layers.Dense(1)]))
    stopped = None
    for evaluation, loss in enumerate(losses):
        weight.assign(float(evaluation))
        log.step("joint", evaluation)
        log.evaluation({"head_1": HeadScore(nats=np.array([loss]), hits=np.ones(1), tokens=np.ones(1))})
        if evaluation == 0:
            callback.look()
            continue
        callback.on_epoch_end(evaluation)
        if getattr(callback.model, "stop_training", False):  # `fit` sets it when it begins
            stopped = evaluation
            break
    log.close()
    assert stopped == stops_after and callback.step == best
    callback.restore()
    assert float(keras.ops.convert_to_numpy(weight.value)) == best
