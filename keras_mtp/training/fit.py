"""A stage as Keras' `compile` and `fit`, from its beginning or from where a snapshot was taken."""

from collections.abc import Iterable, Iterator, Sequence

import keras

from keras_mtp import backend, distribution
from keras_mtp.data.batches import Batches
from keras_mtp.losses import LinearCrossEntropy
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.snapshots import StageSnapshots
from keras_mtp.training.stages import Stage


def fit_stage(
    stage: Stage,
    batches: Batches,
    model: MTPCausalLM,
    taken: StageSnapshots,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Trains a stage, or what is left of it."""
    stage.optimizer.build(
        stage.view.trainable_variables
    )  # a snapshot before the first step holds its state too
    taken.restore()
    if taken.is_past:
        return
    losses = head_losses(model.backbone.token_embedding, stage.loss_weights)
    stage.view.compile(optimizer=stage.optimizer, loss=losses, loss_weights=stage.loss_weights)
    backend.build_for_fit(stage.view, dict.fromkeys(losses, stage.view.backbone.hidden_dim))
    group = distribution.active()
    group.prepare(stage.view)
    backend.return_freed_memory()
    with backend.traced_for_fit():
        for first, steps, epochs in _stretches(taken.done, stage):
            stage.view.fit(
                group.fit_input(backend.fit_input(batches.after(first))),
                steps_per_epoch=steps * batches.accumulation,
                initial_epoch=first // stage.evaluate_every,
                epochs=epochs,
                callbacks=[taken, *callbacks],
                verbose=0,
                shuffle=False,
            )
            if stage.view.stop_training:
                break
    taken.end()


def _stretches(done: int, stage: Stage) -> Iterator[tuple[int, int, int]]:
    """(steps done, steps per epoch, epochs with those before) of each `fit`: all of an epoch are of one length, but a run
    that goes on in the middle of one must end it first."""
    every, epochs = stage.evaluate_every, -(-stage.steps // stage.evaluate_every)
    if within := done % every:
        yield done, every - within, done // every + 1
        done += every - within
    if done < stage.steps:
        yield done, every, epochs


def head_losses(unembedding: keras.layers.Layer, names: Iterable[str]) -> dict[str, LinearCrossEntropy]:
    """A loss for every head: head_1's trains the unembedding, where that is switched on, and no other does."""
    learns = bool(unembedding.trainable_variables)
    return {name: LinearCrossEntropy(unembedding, trained=learns and name == "head_1") for name in names}
