"""What a snapshot costs the training: how long it waits, and how much slower the step is beside which it is written."""

import statistics
import time
from pathlib import Path

import keras

from keras_mtp import pipeline
from keras_mtp.recipe import load_recipe, updated
from tools.crashes import toy

EVERY = 50  # steps between two snapshots, as by default


class Watch(keras.callbacks.Callback):
    """The seconds of every step, with what was between it and the one before."""

    def __init__(self):
        super().__init__()
        self.seconds: list[float] = []
        self.ended = 0.0

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        self.seconds.append(now - self.ended)
        self.ended = now


def share(data: str, method: str, run: Path) -> float:
    """The share of training time that snapshots take where they come every 50 steps, with SmolLM2-135M.

    Every other step has one before it. The first two are left out: they compile.
    """
    settings = {"data.source": data, "training.steps": 22, "heads.count": 0, "evaluation.every": 100}
    recipe = updated(load_recipe("gsm8k"), toy.real_settings(method) | settings)
    watch = Watch()
    pipeline.run(recipe, run, progress=False, callbacks=[watch])
    with_one, without = watch.seconds[2::2], watch.seconds[3::2]
    step = statistics.median(without)
    return max(statistics.median(with_one) - step, 0.0) / (EVERY * step)
