"""Says before a run trains how much memory it will take, and refuses it where that is not there.

Twice: before the model is loaded, from its sizes alone (weights and what trains them must fit at the least), and once the
data are encoded, when the largest batch is known.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from keras_mtp import backend, memory, memory_plan
from keras_mtp.data.batches import Batches
from keras_mtp.data.encoding import Encoded
from keras_mtp.data.lengths import bucket_lengths, shared_tokens
from keras_mtp.errors import UserError
from keras_mtp.evaluation import BUCKETS, Judge
from keras_mtp.flops import Positions, Sizes
from keras_mtp.losses import default_chunk_rows
from keras_mtp.memory_plan import Prediction
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.recipe import Recipe, updated
from keras_mtp.workload import as_text, micro_batch, packed, that_fit, workload


def before_loading(recipe: Recipe, base: BaseInfo, clock: memory.Clock) -> None:
    """Refuses a model whose weights, with what trains them, are too much by themselves.

    Raises:
        UserError: they do not fit, and `training.memory_check` is on.
    """
    _checked(recipe, base, clock)


def before_training(
    recipe: Recipe,
    base: BaseInfo,
    clock: memory.Clock,
    training: Sequence[Encoded],
    judge: Judge,
) -> Prediction:
    """The memory that the run will take, which is there.

    Args:
        clock: started before anything was loaded. training: the examples. judge: who judges before and after.

    Raises:
        UserError: it does not fit, and `training.memory_check` is on.
    """
    lengths, held_out = padded_lengths(recipe, training), judge.held_out.examples
    return _checked(
        recipe,
        base,
        clock,
        training=training_positions(in_one_memory(recipe), training, max(lengths)),
        held_out=held_out_positions(recipe, held_out),
        cache=judge.on_task.cache_shape(),
        lengths=len(lengths),
        judged_lengths=len({*_judged_lengths(held_out)}),
    )


def in_one_memory(recipe: Recipe) -> Recipe:
    """The recipe as one memory sees it: devices that are made of one CPU share theirs."""
    alone = {"distribution.data": 1, "distribution.model": 1}
    return recipe if backend.on_accelerator() else updated(recipe, alone)


def padded_lengths(recipe: Recipe, examples: Sequence[Encoded]) -> set[int]:
    """Tokens per row of the batches that the run's stages will see."""
    training, heads = recipe.training, recipe.heads
    stages = {"heads" if recipe.heads_alone else "joint": training.steps}
    if heads.count and heads.warmup_steps and not recipe.heads_alone:
        stages["warmup"] = heads.warmup_steps
    found: set[int] = set()
    for purpose, steps in stages.items():
        batches = Batches(
            examples,
            heads=(),
            steps=steps,
            batch_size=training.batch_size,
            buckets=recipe.data.buckets,
            seed=training.seed,
            purpose=purpose,
        )
        found |= {batches.padded_length(batches.step_examples(step)) for step in range(steps)}
    return found


def training_positions(recipe: Recipe, examples: Sequence[Encoded], tokens: int) -> Positions:
    """Of the largest micro-batch, given its padded tokens per row."""
    return micro_batch(recipe, tokens, shared_tokens(examples))


def held_out_positions(recipe: Recipe, examples: Sequence[Encoded]) -> Positions:
    """Of the largest batch of held-out examples."""
    tokens = max(_judged_lengths(examples))
    return packed(recipe, recipe.evaluation.batch_size, tokens, shared_tokens(examples))


def _judged_lengths(examples: Sequence[Encoded]) -> list[int]:
    return [int(n) for n in bucket_lengths(np.array([len(item.ids) for item in examples]), BUCKETS)]


def _checked(recipe: Recipe, base: BaseInfo, clock: memory.Clock, **known: Any) -> Prediction:
    """The prediction, from what is known of the batches; an error if it is more than there is."""
    alone, sizes = in_one_memory(recipe), Sizes.of(SimpleNamespace(**base.architecture))
    tied = base.architecture["tied"]
    needed = workload(alone, sizes, tied=tied, chunk_rows=default_chunk_rows(), **known)
    factors = memory_plan.factors(
        keras.config.backend(), recipe.training.dtype, accelerator=backend.on_accelerator()
    )
    prediction = memory_plan.predict(needed, factors)
    free = _free_bytes(clock)
    if free is None or prediction.peak_bytes <= free or not recipe.training.memory_check:
        return prediction
    fitting = that_fit(alone, needed, factors, free)
    changes = next((changes for changes in fitting if _can_be(recipe, changes)), None)
    raise UserError(refusal(prediction, free, changes))


def _can_be(recipe: Recipe, changes: Mapping[str, Any]) -> bool:
    """Whether the recipe allows them: its devices must divide a micro-batch."""
    try:
        updated(recipe, changes)
    except UserError:
        return False
    return True


def _free_bytes(clock: memory.Clock) -> int | None:
    """What the whole run can have: free now, or taken by it already. None where an accelerator does not tell."""
    if backend.on_accelerator():
        return backend.device_bytes()
    return memory.available_bytes() + clock.taken_bytes


def refusal(prediction: Prediction, free: int, fitting: Mapping[str, Any] | None) -> str:
    """What is said; `fitting` are changes of settings with which it fits."""
    parts = sorted(prediction.parts.items(), key=lambda part: -part[1])
    most = ", ".join(f"{name} {_gib(size)}" for name, size in parts[:3])
    advice = (
        f"It fits with {', '.join(f'{key}={as_text(value)}' for key, value in fitting.items())}; the result is the same."
        if fitting
        else "Not even micro-batches of one example fit. Try training.dtype=mixed_bfloat16, a smaller data.max_tokens, another "
        "tuning.method, or a smaller model."
    )
    return (
        f"The run must fit into memory. Predicted: {_gib(prediction.peak_bytes)} at its peak, in {prediction.phase} "
        f"({most}, and less). Free: {_gib(free)}. {advice} `training.memory_check=false` starts all the same."
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
