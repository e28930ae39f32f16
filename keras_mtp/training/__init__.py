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

A run that was cut off goes on from its newest snapshot (snapshots/), in the stage and at the step where that was taken.

`train` below takes the stages in turn. Beside it:

    stages       what each stage trains, with which weights of the losses, on which batches
    optimizers   an AdamW for every group, and its learning rate over the steps
    fit          a stage as `compile` and `fit`
"""

from collections.abc import Sequence
from dataclasses import dataclass

import keras

from keras_mtp.callbacks import BestHeldOut, HeldOut, Plateau, StepLog
from keras_mtp.checkpoint import trained_variables
from keras_mtp.data.batches import Batches
from keras_mtp.data.encoding import Encoded
from keras_mtp.data.lengths import shared_tokens
from keras_mtp.evaluation import HeldOutEvaluation
from keras_mtp.metrics import MetricsLog
from keras_mtp.models import tuned_weights
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.probes import GradientProbe
from keras_mtp.recipe import Recipe
from keras_mtp.snapshots import Snapshots, StageSnapshots
from keras_mtp.training import stages
from keras_mtp.training.fit import fit_stage, head_losses
from keras_mtp.training.optimizers import PerOptimizerStep
from keras_mtp.training.stages import Stage

__all__ = ["PerOptimizerStep", "Trained", "head_losses", "train"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training leaves besides the trained model.

    Args:
        optimizer: of the last stage; its state belongs into the checkpoint.
        steps: optimizer steps of the last stage done; fewer than the recipe's where training was stopped early.
        kept_step: the step whose weights the model now has: the last, or that of the best evaluation.
        padding_share: share of padding in the positions that the last stage computed.
        tuned_weights: how many weights `tuning.method` trains.
    """

    optimizer: keras.optimizers.Optimizer
    steps: int
    kept_step: int
    padding_share: float
    tuned_weights: int


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
        stage = stages.warmup(model, recipe, shared, trained_heads)
        batches = stages.batches(stage, examples, recipe)
        ending = []
        if patience := recipe.heads.warmup_patience:
            ending = [HeldOut(evaluate, log), Plateau(log, model.head_names[1 + trained_heads :], patience)]
        taken = StageSnapshots(snapshots, stage.name, batches.accumulation, model, stage.optimizer, log)
        follow = _step_log(stage, batches, recipe, log, taken.done)
        fit_stage(stage, batches, model, taken, [follow, *ending, *callbacks])
    stage = (stages.heads_alone if recipe.heads_alone else stages.joint)(model, recipe, shared)
    batches = stages.batches(stage, examples, recipe)
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
    fit_stage(stage, batches, model, taken, [follow, HeldOut(evaluate, log), best, *callbacks])
    log.flush()
    best.restore()
    steps = int(log.rows[-1]["step"])
    return Trained(
        optimizer=stage.optimizer,
        steps=steps,
        kept_step=best.step if recipe.training.keep == "best" else steps,
        padding_share=batches.padding_share(steps),
        tuned_weights=tuned_weights.count(model),
    )


def _best(stage: Stage, model: MTPCausalLM, recipe: Recipe, log: MetricsLog) -> BestHeldOut:
    """Follows the evaluations; remembers weights only if the recipe wants the best."""
    if recipe.training.keep == "last":
        return BestHeldOut(log, (), recipe.training.patience)
    stage.optimizer.build(stage.view.trainable_variables)  # its state before the first step counts too
    state = [*trained_variables(model).values(), *stage.optimizer.variables]
    return BestHeldOut(log, state, recipe.training.patience)


def _probe(
    stage: Stage, batches: Batches, model: MTPCausalLM, recipe: Recipe, shared: int
) -> list[GradientProbe]:
    """The probe of the joint stage, if the recipe wants one."""
    if not recipe.training.probe_every:
        return []
    weights = list(tuned_weights.tuned_variables(model).values())
    # A view of its own: torch's fused blocks allow one backward pass per forward, and here every head has its own.
    view = model.training_view(shared_tokens=shared, detach=recipe.heads.detach, remat=recipe.training.remat)
    losses = head_losses(model.backbone.token_embedding, stage.loss_weights)
    return [GradientProbe(view, losses, batches, weights, recipe.training.probe_every)]


def _step_log(
    stage: Stage, batches: Batches, recipe: Recipe, log: MetricsLog, done: int, *probe: GradientProbe
) -> StepLog:
    stop = recipe.training.on_divergence == "stop"
    return StepLog(log, stage.name, batches, *probe, done=done, stop_if_diverged=stop)
