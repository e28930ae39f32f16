"""Keras callbacks that connect `fit` to the run's record: exact losses per step, held-out scores per epoch."""

import time

import keras

from keras_mtp.data.batches import Batches
from keras_mtp.evaluation import HeldOutEvaluation
from keras_mtp.metrics import MetricsLog


class StepLog(keras.callbacks.Callback):
    """Writes the exact losses of every optimizer step, where Keras reports running means over the epoch.

    Args:
        log: where to write. stage: "warmup" or "joint". batches: what the stage is fed.
    """

    def __init__(self, log: MetricsLog, stage: str, batches: Batches):
        super().__init__()
        self.log, self.stage, self.batches = log, stage, batches
        self.micro_batches = 0

    def on_train_batch_begin(self, batch, logs=None):
        if self.micro_batches % self.batches.accumulation == 0:
            self.model.reset_metrics()
            self.begun = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.micro_batches += 1
        if self.micro_batches % self.batches.accumulation:
            return
        step = self.micro_batches // self.batches.accumulation
        losses = _losses_by_head(logs, self.batches.heads)
        seconds = time.monotonic() - self.begun
        self.log.step(
            self.stage,
            step,
            tokens_per_second=round(self.batches.real_tokens(step - 1) / seconds, 1),
            **losses,
        )
        if step == self.batches.steps:
            # The last epoch may be shorter than the others; Keras would warn that the data ran out.
            self.model.stop_training = True


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


def _losses_by_head(logs: dict, heads: tuple[str, ...]) -> dict[str, float]:
    """Keras names the loss of a single output just "loss"."""
    if len(heads) == 1:
        return {f"{heads[0]}_loss": float(logs["loss"])}
    return {f"{name}_loss": float(logs[f"{name}_loss"]) for name in heads}
