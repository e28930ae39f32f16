"""The snapshots of a stage: when they are taken, and of what."""

import keras

from keras_mtp import checkpoint
from keras_mtp.callbacks import BestHeldOut
from keras_mtp.errors import Interrupted
from keras_mtp.metrics import MetricsLog
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.snapshot import BEST, STAGES
from keras_mtp.snapshots.of_run import Snapshots


class StageSnapshots(keras.callbacks.Callback):
    """Takes the snapshots of a stage, each after all that the step before led to, and says where the stage goes on.

    Args:
        snapshots: of the run; None for training that takes none. stage: its name. micro_batches: per optimizer step.
        model, optimizer: whose state to keep. log: the run's record. best: what follows the evaluations, if anything does.

    Attributes:
        done: optimizer steps that were made before the run was cut off.
        is_past: whether all of them were, or a later stage was begun.

    Raises:
        Interrupted: a signal came, and a snapshot was taken.
    """

    def __init__(
        self,
        snapshots: Snapshots | None,
        stage: str,
        micro_batches: int,
        model: MTPCausalLM,
        optimizer: keras.optimizers.Optimizer,
        log: MetricsLog,
        best: BestHeldOut | None = None,
    ):
        super().__init__()
        self.snapshots, self.stage, self.micro_batches = snapshots, stage, micro_batches
        self.trained, self.optimizer, self.log, self.best = model, optimizer, log, best
        self.found = snapshots.found if snapshots else None
        at = self.found.position if self.found else None
        self.begun = at is not None and at.stage == stage
        self.done = at.step if at and self.begun else 0
        self.is_past = at is not None and (
            STAGES.index(at.stage) > STAGES.index(stage) or (self.begun and at.over)
        )
        self._batches = self.done * micro_batches

    def restore(self) -> None:
        """Puts the optimizer's state back to where the stage goes on; nothing where it begins."""
        if self.found and self.begun:
            checkpoint.put(self.found.folder / checkpoint.OPTIMIZER, self.optimizer.variables)

    def on_train_batch_begin(self, batch, logs=None):
        step, within = divmod(self._batches, self.micro_batches)
        self._batches += 1
        if self.snapshots is None or within or not self.snapshots.is_due(step):
            return
        _ = self.model  # on JAX this syncs the variables, which are stale during an epoch
        if not (self.begun and step == self.done):  # that one is there
            self._take(step)
        self._end_if_asked(step)

    def end(self) -> None:
        """Takes the snapshot of a stage that is over."""
        if self.snapshots is None or not self.snapshots.every:
            return
        self.log.flush()
        step = int(self.log.rows[-1]["step"])
        self._take(step, over=True)
        self.snapshots.is_to_end()
        self._end_if_asked(step)

    def _take(self, step: int, *, over: bool = False) -> None:
        assert self.snapshots is not None
        content = checkpoint.content(self.trained, self.optimizer.variables)
        if self.best and self.best.values:
            content.arrays[BEST] = checkpoint.numbered(self.best.values)
        self.snapshots.save(content, self.log.written(), stage=self.stage, step=step, over=over)

    def _end_if_asked(self, step: int) -> None:
        assert self.snapshots is not None
        if number := self.snapshots.stop.number:
            self.snapshots.wait()
            raise Interrupted(
                f"Stopped after step {step} of the stage {self.stage}. The same command goes on, with --run {self.snapshots.folder.parent}.",
                number,
            )
