"""What a person sees while a run goes on: one line per event and a live bar, all on standard error.

The bar shows the loss of every head, tokens per second and the time left. Where standard error is no terminal, as in a
log file, there is a line after the warm-up and one per evaluation instead.
"""

from collections.abc import Mapping

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keras_mtp.metrics import MetricsLog
from keras_mtp.recipe import Recipe

STAGES = {"warmup": "warming up the heads", "joint": "training", "heads": "training the heads"}


def console(shown: bool) -> Console:
    """Standard error, or nothing at all."""
    return Console(stderr=True, quiet=not shown, highlight=False, markup=False)  # paths may hold brackets


class ProgressBar(keras.callbacks.Callback):
    """Follows a `MetricsLog` through the stages; add it after the callbacks that write the log.

    Args:
        log: the run's record. recipe: says how many steps there will be. screen: where to draw.
    """

    def __init__(self, log: MetricsLog, recipe: Recipe, screen: Console):
        super().__init__()
        self.log, self.screen = log, screen
        self.totals = dict.fromkeys(STAGES, recipe.training.steps) | {"warmup": recipe.heads.warmup_steps}
        self.bar: Progress | None = None

    def on_train_begin(self, logs=None):
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=self.screen,
            disable=not self.screen.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=None, losses="")
        self.bar.start()

    def on_train_batch_end(self, batch, logs=None):
        row = self.log.latest
        # Between the micro-batches of a step, and before the first, there is no new row to show.
        if self.bar is None or row is None or "tokens_per_second" not in row:
            return
        self.bar.update(
            self.task,
            description=STAGES[row["stage"]],
            total=self.totals[row["stage"]],
            completed=row["step"],
            losses=f"{_losses(self._of_heads(row), 3)}  {row['tokens_per_second']:.0f} tokens/s",
        )

    def on_epoch_end(self, epoch, logs=None):
        row = self.log.latest
        scores = {k.removeprefix("val_"): v for k, v in (logs or {}).items() if k.startswith("val_")}
        if row is not None and scores:
            step = f"step {row['step']:>5} of {self.totals[row['stage']]}"
            self.screen.print(f"{step}: held-out loss  {_losses(scores, 4)}")
        elif row is not None and row["stage"] == "warmup":
            losses = _losses(self._of_heads(row), 4)
            self.screen.print(f"heads warmed up, {row['step']} steps: training loss  {losses}")

    def on_train_end(self, logs=None):
        self.close()

    def close(self) -> None:
        """Gives the terminal back; Keras does not call `on_train_end` when training is interrupted."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _of_heads(self, row) -> dict[str, float]:
        return {column: row[column] for column in self.log.loss_columns if column in row}


def _losses(values: Mapping[str, float], digits: int) -> str:
    """{"head_1_loss": 1.25, ...} as "head_1 1.250  ..."."""
    return "  ".join(f"{name.removesuffix('_loss')} {value:.{digits}f}" for name, value in values.items())
