"""Two stages of plain Keras `compile` and `fit`.

    warmup   the heads learn on a frozen trunk without its prefix being moved: a head that starts as a copy of the
             backbone confidently says token t+1, is worse than uniform on its own target, and would pull the prefix
             the wrong way. It ends after so many steps, or once the heads hardly get better
    joint    the prefix (or whatever `tuning.method` names) learns from head_1, and from the heads with a small weight; the
             heads learn too, unless frozen

Heads whose purpose is speed, not a better prefix, and heads with the method `heads`, have one stage instead of both:

    heads    the heads alone learn, as in the warm-up, but all of them and for as long as the joint stage would take

Every group of weights (what the method trains; heads) has an AdamW of its own, with its own learning rate and clipped by
its own norm: the heads then reach the prefix through their loss only, never through a shared norm, and a run with detached
heads is a true control. A Keras epoch is the stretch between two evaluations.

A run that was cut off goes on from its newest snapshot (snapshots.py), in the stage and at the step where that was taken.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import keras

from keras_mtp import backend, distribution
from keras_mtp.callbacks import BestHeldOut, HeldOut, Plateau, StepLog
from keras_mtp.checkpoint import trained_variables
from keras_mtp.data.batches import Batches
from keras_mtp.data.encoding import Encoded
from keras_mtp.data.lengths import shared_tokens
from keras_mtp.errors import UserError
from keras_mtp.evaluation import HeldOutEvaluation
from keras_mtp.losses import LinearCrossEntropy
from keras_mtp.metrics import MetricsLog
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.models.training_view import TrainingView
from keras_mtp.models.tuned_weights import train_only, tuned_variables
from keras_mtp.probes import GradientProbe
from keras_mtp.recipe import Recipe
from keras_mtp.snapshots import Snapshots, StageSnapshots

COMPILING_PAYS = 60  # batches: about where torch.compile has won back its minute, measured on two CPU cores


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training leaves besides the trained model.

    Args:
        optimizer: of the last stage; its state belongs into the checkpoint.
        steps: optimizer steps of the last stage done; fewer than the recipe's where training was stopped early.
        kept_step: the step whose weights the model now has: the last, or that of the best evaluation.
        padding_share: share of padding in the positions that the last stage computed.
    """

    optimizer: keras.optimizers.Optimizer
    steps: int
    kept_step: int
    padding_share: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One `compile` and `fit`.

    Args:
        name: "warmup", "joint" or "heads"; also names the stream of batches.
        steps: optimizer steps.
        view: the model to fit, with hidden states as outputs.
        loss_weights: {"head_k": weight}.
        optimizer: one AdamW per group.
        evaluate_every: optimizer steps per Keras epoch.
    """

    name: str
    steps: int
    view: keras.Model
    loss_weights: dict[str, float]
    optimizer: keras.optimizers.Optimizer
    evaluate_every: int


def train(
    model: MTPCausalLM,
    examples: Sequence[Encoded],
    recipe: Recipe,
    log: MetricsLog,
    evaluate: HeldOutEvaluation,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    trained_heads: int = 0,
    snapshots: Snapshots | None = None,
) -> Trained:
    """Runs the stages of a recipe on a model.

    Args:
        model: the model to train, in place. It ends with the weights that `training.keep` says.
        examples: encoded training examples.
        recipe: what to do. log: gets a row per step. evaluate: called before training and at every evaluation.
        callbacks: further Keras callbacks (TensorBoard, your own), for every stage, each a `fit` of its own. Their `logs` are those of the last step, and at the
            end of an epoch, which is the stretch between two evaluations, also `val_head_k_loss`.
        trained_heads: so many of the model's heads, the nearest, come from another run and need no warm-up.
        snapshots: of the run, to go on from and to be taken; none to take none.

    Raises:
        Diverged: a loss was no finite number, and the recipe wants to stop there.
        Interrupted: a signal came while snapshots are taken.
    """
    shared = shared_tokens(examples)
    if snapshots:
        snapshots.restore(model, examples)
    if model.heads[trained_heads:] and recipe.heads.warmup_steps and not recipe.heads_alone:
        stage = _warmup(model, recipe, shared, trained_heads)
        batches = _batches(stage, examples, recipe)
        ending = []
        if patience := recipe.heads.warmup_patience:
            ending = [HeldOut(evaluate, log), Plateau(log, model.head_names[1 + trained_heads :], patience)]
        taken = StageSnapshots(snapshots, stage.name, batches.accumulation, model, stage.optimizer, log)
        follow = _step_log(stage, batches, recipe, log, taken.done)
        _fit(stage, batches, model, taken, [follow, *ending, *callbacks])
    stage = (_heads if recipe.heads_alone else _joint)(model, recipe, shared)
    batches = _batches(stage, examples, recipe)
    best = _best(stage, model, recipe, log)
    taken = StageSnapshots(snapshots, stage.name, batches.accumulation, model, stage.optimizer, log, best)
    if snapshots and snapshots.found and taken.begun:
        best.remember([row for row in log.rows if row["stage"] == stage.name], snapshots.found.best())
    else:
        log.step(stage.name, 0)
        log.evaluation(evaluate())
        best.look()
    follow = _step_log(
        stage, batches, recipe, log, taken.done, *_probe(stage, batches, model, recipe, shared)
    )
    _fit(stage, batches, model, taken, [follow, HeldOut(evaluate, log), best, *callbacks])
    log.flush()
    best.restore()
    steps = int(log.rows[-1]["step"])
    return Trained(
        optimizer=stage.optimizer,
        steps=steps,
        kept_step=best.step if recipe.training.keep == "best" else steps,
        padding_share=batches.padding_share(steps),
    )


def _best(stage: Stage, model: MTPCausalLM, recipe: Recipe, log: MetricsLog) -> BestHeldOut:
    """Follows the evaluations; remembers weights only if the recipe wants the best."""
    if recipe.training.keep == "last":
        return BestHeldOut(log, (), recipe.training.patience)
    stage.optimizer.build(stage.view.trainable_variables)  # its state before the first step counts too
    state = [*trained_variables(model).values(), *stage.optimizer.variables]
    return BestHeldOut(log, state, recipe.training.patience)


def _warmup(model: MTPCausalLM, recipe: Recipe, shared: int, trained_heads: int) -> Stage:
    steps = recipe.heads.warmup_steps
    train_only(model, tuned=False, heads=model.heads[trained_heads:])
    return Stage(
        name="warmup",
        steps=steps,
        view=_view(model, recipe, steps, shared, only_heads=True),
        loss_weights=dict.fromkeys(model.head_names[1:], 1.0),
        optimizer=_optimizer(model, recipe, steps, falls=not recipe.heads.warmup_patience),
        evaluate_every=min(recipe.evaluation.every, steps) if recipe.heads.warmup_patience else steps,
    )


def _joint(model: MTPCausalLM, recipe: Recipe, shared: int) -> Stage:
    heads, steps = recipe.heads, recipe.training.steps
    train_only(model, tuned=True, heads=[] if heads.freeze else model.heads)
    return Stage(
        name="joint",
        steps=steps,
        view=_view(model, recipe, steps, shared, detach=heads.detach),
        loss_weights={"head_1": 1.0, **_decaying(heads.weight, model, recipe)},
        optimizer=_optimizer(model, recipe, steps),
        evaluate_every=min(recipe.evaluation.every, steps),
    )


def _heads(model: MTPCausalLM, recipe: Recipe, shared: int) -> Stage:
    train_only(model, tuned=False, heads=model.heads)
    return Stage(
        name="heads",
        steps=recipe.training.steps,
        view=_view(model, recipe, recipe.training.steps, shared, only_heads=True),
        loss_weights=_decaying(1.0, model, recipe),
        optimizer=_optimizer(model, recipe, recipe.training.steps),
        evaluate_every=min(recipe.evaluation.every, recipe.training.steps),
    )


def _view(model: MTPCausalLM, recipe: Recipe, steps: int, shared: int, **options: bool) -> TrainingView:
    training = recipe.training
    fused = training.compile and steps * training.accumulation >= COMPILING_PAYS
    return model.training_view(shared_tokens=shared, remat=training.remat, fused=fused, **options)


def _decaying(weight: float, model: MTPCausalLM, recipe: Recipe) -> dict[str, float]:
    """The weights of the further heads' losses: {"head_2": weight, "head_3": weight * decay, ...}."""
    return {name: weight * recipe.heads.decay**i for i, name in enumerate(model.head_names[1:])}


def _batches(stage: Stage, examples, recipe: Recipe) -> Batches:
    return Batches(
        examples,
        heads=tuple(stage.loss_weights),
        steps=stage.steps,
        batch_size=recipe.training.batch_size,
        accumulation=recipe.training.accumulation,
        buckets=recipe.data.buckets,
        seed=recipe.training.seed,
        purpose=stage.name,
        target=recipe.heads.target,
        schedule=recipe.heads.schedule if stage.name == "joint" else "constant",
        rows=distribution.active().rows,
    )


def _probe(
    stage: Stage, batches: Batches, model: MTPCausalLM, recipe: Recipe, shared: int
) -> list[GradientProbe]:
    """The probe of the joint stage, if the recipe wants one."""
    if not recipe.training.probe_every:
        return []
    weights = list(tuned_variables(model).values())
    if not weights:
        raise UserError(
            "`training.probe_every` must be 0 where only heads are trained: it measures what the heads ask of the weights "
            f"that they share. Received: training.probe_every={recipe.training.probe_every}."
        )
    # A view of its own: torch's fused blocks allow one backward pass per forward, and here every head has its own.
    view = model.training_view(shared_tokens=shared, detach=recipe.heads.detach, remat=recipe.training.remat)
    losses = head_losses(model.backbone.token_embedding, stage.loss_weights)
    return [GradientProbe(view, losses, batches, weights, recipe.training.probe_every)]


def _step_log(
    stage: Stage, batches: Batches, recipe: Recipe, log: MetricsLog, done: int, *probe: GradientProbe
) -> StepLog:
    stop = recipe.training.on_divergence == "stop"
    return StepLog(log, stage.name, batches, *probe, done=done, stop_if_diverged=stop)


def _fit(
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
    with backend.sums_as_written():
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


def _optimizer(
    model: MTPCausalLM, recipe: Recipe, steps: int, *, falls: bool = True
) -> keras.optimizers.Optimizer:
    """One AdamW per group of weights that is to be trained."""
    heads = {v.path for head in model.heads for v in head.trainable_variables}
    others = {v.path for v in model.trainable_variables} - heads
    if not heads and not others:
        raise UserError(
            "The recipe trains nothing: prefix.length is 0 and there are no heads to train. "
            "Set prefix.length, or heads.count with heads.freeze=false."
        )
    main = _adamw(recipe, recipe.training.learning_rate, steps, "main", falls)
    if not heads:
        return main
    heads_optimizer = _adamw(recipe, recipe.heads.learning_rate, steps, "heads", falls)
    if not others:
        return heads_optimizer
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(main, optimizer_map=dict.fromkeys(sorted(heads), heads_optimizer))
    )


def _adamw(
    recipe: Recipe, learning_rate: float, steps: int, name: str, falls: bool
) -> keras.optimizers.Optimizer:
    """AdamW with a linear warm-up, then a cosine to zero if it `falls`, clipped by the norm of all its gradients together.

    Keras' `Adam` with a `weight_decay` is AdamW. With a decay of 0 its `AdamW` would still go through every weight.
    """
    training = recipe.training
    warmup = round(training.learning_rate_warmup * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate / max(warmup, 1),
        decay_steps=max(steps - warmup, 1),
        warmup_target=learning_rate,
        warmup_steps=warmup,
        alpha=0.0 if falls else 1.0,
    )
    accumulated = training.accumulation > 1
    return distribution.active().optimizer_class(keras.optimizers.Adam)(
        learning_rate=PerOptimizerStep(schedule, training.accumulation) if accumulated else schedule,
        weight_decay=training.weight_decay or None,
        epsilon=training.epsilon,
        global_clipnorm=training.clip_norm or None,
        gradient_accumulation_steps=training.accumulation if accumulated else None,
        name=name,
    )


@keras.saving.register_keras_serializable("keras_mtp")
class PerOptimizerStep(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule over optimizer steps, where Keras counts micro-batches (keras/src/optimizers/base_optimizer.py).

    Args:
        schedule: the schedule to follow. micro_batches: gradients accumulated per optimizer step.
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, micro_batches: int):
        self.schedule, self.micro_batches = schedule, micro_batches

    def __call__(self, step):
        return self.schedule(keras.ops.floor_divide(step, self.micro_batches))

    def get_config(self):
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "micro_batches": self.micro_batches}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        schedule = keras.saving.deserialize_keras_object(config["schedule"], custom_objects)
        return cls(schedule, config["micro_batches"])
