"""The stages of training: what each trains, with which weights of the losses, on which batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras

from keras_mtp import distribution
from keras_mtp.data.batches import Batches
from keras_mtp.data.encoding import Encoded
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.models.training_view import TrainingView
from keras_mtp.models.tuned_weights import train_only
from keras_mtp.recipe import Recipe
from keras_mtp.training.optimizers import optimizer_for

COMPILING_PAYS = 60  # batches: about where torch.compile has won back its minute, measured on two CPU cores


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


def warmup(model: MTPCausalLM, recipe: Recipe, shared: int, trained_heads: int) -> Stage:
    """The new heads on a frozen trunk, all of equal weight; `trained_heads` of them are not new."""
    steps = recipe.heads.warmup_steps
    train_only(model, tuned=False, heads=model.heads[trained_heads:])
    return Stage(
        name="warmup",
        steps=steps,
        view=_view(model, recipe, steps, shared, only_heads=True),
        loss_weights=dict.fromkeys(model.head_names[1:], 1.0),
        optimizer=optimizer_for(model, recipe, steps, falls=not recipe.heads.warmup_patience),
        evaluate_every=min(recipe.evaluation.every, steps) if recipe.heads.warmup_patience else steps,
    )


def joint(model: MTPCausalLM, recipe: Recipe, shared: int) -> Stage:
    """What the method names, from head_1 and, with a smaller weight, from the further heads."""
    heads, steps = recipe.heads, recipe.training.steps
    train_only(model, tuned=True, heads=[] if heads.freeze else model.heads)
    return Stage(
        name="joint",
        steps=steps,
        view=_view(model, recipe, steps, shared, detach=heads.detach),
        loss_weights={"head_1": 1.0, **_decaying(heads.weight, model, recipe)},
        optimizer=optimizer_for(model, recipe, steps),
        evaluate_every=min(recipe.evaluation.every, steps),
    )


def heads_alone(model: MTPCausalLM, recipe: Recipe, shared: int) -> Stage:
    """All heads on a frozen trunk, for as long as the joint stage would take."""
    train_only(model, tuned=False, heads=model.heads)
    return Stage(
        name="heads",
        steps=recipe.training.steps,
        view=_view(model, recipe, recipe.training.steps, shared, only_heads=True),
        loss_weights=_decaying(1.0, model, recipe),
        optimizer=optimizer_for(model, recipe, recipe.training.steps),
        evaluate_every=min(recipe.evaluation.every, recipe.training.steps),
    )


def _view(model: MTPCausalLM, recipe: Recipe, steps: int, shared: int, **options: bool) -> TrainingView:
    training = recipe.training
    fused = training.compile and steps * training.accumulation >= COMPILING_PAYS
    return model.training_view(shared_tokens=shared, remat=training.remat, fused=fused, **options)


def _decaying(weight: float, model: MTPCausalLM, recipe: Recipe) -> dict[str, float]:
    """The weights of the further heads' losses: {"head_2": weight, "head_3": weight * decay, ...}."""
    return {name: weight * recipe.heads.decay**i for i, name in enumerate(model.head_names[1:])}


def batches(stage: Stage, examples: Sequence[Encoded], recipe: Recipe) -> Batches:
    """The batches of a stage: a stream of its own."""
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
