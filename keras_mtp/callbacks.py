"""Keras callbacks that connect `fit` to the run's record: exact losses per step, held-out scores per epoch, the best."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_mtp import backend, distribution
from keras_mtp.data.batches import Batches
from keras_mtp.errors import Diverged
from keras_mtp.evaluation import HeldOutEvaluation
from keras_mtp.metrics import MetricsLog

SETTLING = 2  # micro-batches of a length until its memory is where it stays


class StepLog(keras.callbacks.Callback):
    """Writes the exact losses of every optimizer step, where Keras reports running means over the epoch.

    Args:
        log: where to write. stage: "warmup", "joint" or "heads". batches: what the stage is fed.
        probe: called with a step's number before the step is made, for further values of its row, see `GradientProbe`.
        done: optimizer steps of the stage that were made before.
        stop_if_diverged: whether a loss that is no finite number ends the run.

    Raises:
        Diverged: it was none.
    """

    def __init__(
        self,
        log: MetricsLog,
        stage: str,
        batches: Batches,
        probe: Callable[[int], Mapping[str, float]] = lambda step: {},
        *,
        done: int = 0,
        stop_if_diverged: bool = False,
    ):
        super().__init__()
        self.log, self.stage, self.batches, self.probe = log, stage, batches, probe
        self.micro_batches = done * batches.accumulation
        self.stop_if_diverged = stop_if_diverged
        self.lengths: Counter[int] = Counter()

    def on_train_batch_begin(self, batch, logs=None):
        if self.micro_batches % self.batches.accumulation == 0:
            self.model.reset_metrics()  # on JAX `model` syncs the variables, which are stale during an epoch
            self.probed = self.probe(self.micro_batches // self.batches.accumulation + 1)
            self.begun = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.micro_batches += 1
        # Reading waits for the micro-batch: JAX would begin the next one meanwhile, in as much memory again.
        losses = _losses_by_head(logs, self.batches.heads)
        self._settle()
        if self.micro_batches % self.batches.accumulation:
            return
        step = self.micro_batches // self.batches.accumulation
        totals = distribution.active().total(list(losses.values()))
        losses = {
            name: total / self.batches.weight(name, step - 1)
            for name, total in zip(losses, totals, strict=True)
        }
        seconds = time.monotonic() - self.begun
        self.log.step(
            self.stage,
            step,
            tokens_per_second=round(self.batches.real_tokens(step - 1) / seconds, 1),
            **{f"{name}_loss": loss for name, loss in losses.items()},
            **self.probed,
        )
        if self.stop_if_diverged and not all(map(math.isfinite, losses.values())):
            examples = [self.batches.examples[i].id for i in self.batches.step_examples(step - 1)]
            raise Diverged(stage=self.stage, step=step, losses=losses, examples=examples)
        if step == self.batches.steps:
            # The last epoch may be shorter than the others; Keras would warn that the data ran out.
            self.model.stop_training = True

    def _settle(self) -> None:
        """Gives back what compiling a new length took, and a first batch before its results had a place of their own."""
        step = (self.micro_batches - 1) // self.batches.accumulation
        length = self.batches.padded_length(self.batches.step_examples(step))
        self.lengths[length] += 1
        if self.lengths[length] <= SETTLING:
            backend.return_freed_memory()


class HeldOut(keras.callbacks.Callback):
    """Scores the model on the held-out slice at the end of every epoch, as `val_head_k_loss` in `logs`."""

    def __init__(self, evaluate: HeldOutEvaluation, log: MetricsLog):
        super().__init__()
        self.evaluate = evaluate
        self.log = log

    def on_epoch_end(self, epoch, logs=None):
        _ = self.model  # on JAX this syncs the variables, which are stale during an epoch
        scores = self.evaluate()
        self.log.evaluation(scores)
        if logs is not None:
            logs.update({f"val_{name}_loss": score.loss for name, score in scores.items()})


class Plateau(keras.callbacks.Callback):
    """Ends a stage once the held-out loss of some heads, summed, hardly falls any more.

    Args:
        log: where `HeldOut`, which comes before this callback, writes the scores.
        heads: their names. patience: evaluations in a row without a fall of 1 % after which the stage ends.
    """

    FALL = 0.01

    def __init__(self, log: MetricsLog, heads: Sequence[str], patience: int):
        super().__init__()
        self.log, self.heads, self.patience = log, heads, patience
        self.loss, self.waited = math.inf, 0
        for row in log.rows:  # of before the run was cut off
            if row["stage"] == "warmup" and _evaluated(row):
                self._look(row)

    def on_epoch_end(self, epoch, logs=None):
        row = self.log.latest
        assert row is not None, "an evaluation belongs to a step"
        self._look(row)
        if self.waited >= self.patience:
            self.model.stop_training = True

    def _look(self, row: Mapping[str, float]) -> None:
        loss = sum(row[f"held_out_{name}_loss"] for name in self.heads)
        if loss < (1 - self.FALL) * self.loss:
            self.loss, self.waited = loss, 0
        else:
            self.waited += 1


class BestHeldOut(keras.callbacks.Callback):
    """Remembers the weights with which head_1's held-out loss was lowest, and stops once it no longer falls.

    `keras.callbacks.EarlyStopping` would copy the frozen backbone at every new best, knows nothing of the evaluation
    before training (with `baseline` it never stops a run that only climbs back to where it was), and does not put the
    optimizer's state back with the weights.

    Args:
        log: where `HeldOut`, which comes before this callback, writes the scores.
        variables: what is to be remembered: the trained weights and their optimizer's state; none to remember nothing.
        patience: evaluations in a row without a new lowest loss after which training stops; 0 for never.

    Attributes:
        step: the optimizer step of the lowest loss. values: what was remembered there, in the order of the variables.
    """

    def __init__(self, log: MetricsLog, variables: Sequence[keras.Variable], patience: int):
        super().__init__()
        self.log, self.variables, self.patience = log, variables, patience
        self.step, self.loss, self.waited = 0, math.inf, 0
        self.values: Sequence[np.ndarray] = ()
        self._looked = False

    def look(self) -> None:
        """Takes note of the evaluation just made; call it once before training."""
        row = self.log.latest
        assert row is not None, "an evaluation belongs to a step"
        if self._is_best(row):
            # A copy: the backends train on in the memory that `whole` shows.
            self.values = [np.array(distribution.active().whole(v.value)) for v in self.variables]

    def remember(self, rows: Sequence[Mapping[str, Any]], values: Sequence[np.ndarray]) -> None:
        """Goes on after a run was cut off.

        Args:
            rows: the record of the stage so far. values: what was remembered, in the order of the variables.
        """
        self.values = values
        for row in filter(_evaluated, rows):
            self._is_best(row)

    def _is_best(self, row: Mapping[str, Any]) -> bool:
        loss = row["held_out_head_1_loss"]
        if self._looked and not loss < self.loss:  # also if it is no number
            self.waited += 1
            return False
        self._looked = True
        self.step, self.loss, self.waited = row["step"], loss if math.isfinite(loss) else math.inf, 0
        return True

    def on_epoch_end(self, epoch, logs=None):
        model = self.model  # on JAX this syncs the variables, which are stale during an epoch
        self.look()
        if self.patience and self.waited >= self.patience:
            model.stop_training = True

    def restore(self) -> None:
        """Puts the remembered weights back, once `fit` has returned."""
        for variable, value in zip(self.variables, self.values, strict=True):
            variable.assign(value)


def _evaluated(row: Mapping[str, Any]) -> bool:
    return "held_out_head_1_loss" in row


def _losses_by_head(logs: dict, heads: tuple[str, ...]) -> dict[str, float]:
    """Keras names the loss of a single output just "loss"."""
    if len(heads) == 1:
        return {heads[0]: float(logs["loss"])}
    return {name: float(logs[f"{name}_loss"]) for name in heads}
