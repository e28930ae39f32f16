"""An AdamW for every group of weights, and its learning rate over the steps."""

import keras

from keras_mtp import distribution
from keras_mtp.errors import UserError
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe


def optimizer_for(
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
    main = adamw(recipe, recipe.training.learning_rate, steps, "main", falls)
    if not heads:
        return main
    heads_optimizer = adamw(recipe, recipe.heads.learning_rate, steps, "heads", falls)
    if not others:
        return heads_optimizer
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(main, optimizer_map=dict.fromkeys(sorted(heads), heads_optimizer))
    )


def adamw(
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
