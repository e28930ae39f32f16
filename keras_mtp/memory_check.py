"""Says before a run trains how much memory it will take, and refuses it where that is not there.

Twice: before the model is loaded, from its sizes alone (weights and what trains them must fit at the least), and once the
data are encoded, when the largest batch is known.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace

import keras
import numpy as np

from keras_mtp import backend, memory, memory_plan
from keras_mtp.data.batches import Batches, bucket_lengths, shared_tokens
from keras_mtp.data.encoding import Encoded
from keras_mtp.errors import UserError
from keras_mtp.evaluation import BUCKETS, TaskEvaluation, answered_rows
from keras_mtp.flops import Positions, Sizes
from keras_mtp.losses import default_chunk_rows
from keras_mtp.memory_plan import Prediction, Workload
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.recipe import Recipe, flat

NOTHING = Positions(rows=0, own=0)


def before_loading(recipe: Recipe, base: BaseInfo, clock: memory.Clock) -> None:
    """Refuses a model whose weights, with what trains them, are too much by themselves.

    Raises:
        UserError: they do not fit, and `training.memory_check` is on.
    """
    _checked(recipe, workload(recipe, base), clock)


def before_training(
    recipe: Recipe,
    base: BaseInfo,
    clock: memory.Clock,
    training: Sequence[Encoded],
    held_out: Sequence[Encoded],
    answered: TaskEvaluation,
) -> Prediction:
    """The memory that the run will take, which is there.

    Args:
        clock: started before anything was loaded. training, held_out: the examples. answered: the task's items.

    Raises:
        UserError: it does not fit, and `training.memory_check` is on.
    """
    lengths = padded_lengths(recipe, training)
    full = dataclasses.replace(
        workload(
            recipe,
            base,
            training=training_positions(recipe, training, max(lengths)),
            held_out=held_out_positions(recipe, held_out),
            cache=answered.cache_shape(),
        ),
        lengths=len(lengths),
        judged_lengths=len({*_judged_lengths(held_out)}),
    )
    return _checked(recipe, full, clock)


def workload(
    recipe: Recipe,
    base: BaseInfo,
    *,
    training: Positions = NOTHING,
    held_out: Positions = NOTHING,
    cache: tuple[int, int] = (0, 0),
) -> Workload:
    """What of a recipe and its model decides the memory; without more arguments, of weights and what trains them.

    Args:
        training, held_out: as in `Workload`. cache: rows, and slots per row, of the key-value cache.
    """
    float32 = recipe.training.dtype == "float32"
    heads, tuned = recipe.heads, recipe.tuning
    return Workload(
        sizes=Sizes.of(SimpleNamespace(**base.architecture)),
        tied=base.architecture["tied"],
        training=training,
        held_out=held_out,
        chunk_rows=default_chunk_rows(),
        stored_bytes=4 if float32 or "full" in tuned.methods else 2,
        compute_bytes=4 if float32 else 2,
        method=tuned.method,
        prefix_length=recipe.prefix_length,
        lora_rank=tuned.lora_rank,
        lora_targets=tuned.projections if "lora" in tuned.methods else (),
        snapshots=bool(recipe.training.snapshot_every),
        heads=heads.count,
        kind=heads.kind,
        heads_frozen=heads.freeze,
        heads_alone=recipe.heads_alone,
        warmup=bool(heads.warmup_steps) and not recipe.heads_alone,
        accumulated=recipe.training.accumulation > 1,
        remat=recipe.training.remat,
        keep_best=recipe.training.keep == "best",
        cache_rows=cache[0],
        cache_slots=cache[1],
    )


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
    return _positions(recipe, examples, recipe.training.batch_size // recipe.training.accumulation, tokens)


def held_out_positions(recipe: Recipe, examples: Sequence[Encoded]) -> Positions:
    """Of the largest batch of held-out examples."""
    return _positions(recipe, examples, recipe.evaluation.batch_size, max(_judged_lengths(examples)))


def _judged_lengths(examples: Sequence[Encoded]) -> list[int]:
    return [int(n) for n in bucket_lengths(np.array([len(item.ids) for item in examples]), BUCKETS)]


def _positions(recipe: Recipe, examples: Sequence[Encoded], rows: int, tokens: int) -> Positions:
    """As `TrainingView` packs them."""
    looks_ahead = recipe.heads.count if recipe.heads.kind == "sequential" else 0
    shared = max(shared_tokens(examples) - looks_ahead, 0)
    computed = 0 if "prefix_kv" in recipe.tuning.methods else recipe.prefix_length
    kept = recipe.prefix_length - computed
    return Positions(rows=rows, own=tokens - shared, shared=computed + shared, kept=kept)


def _checked(recipe: Recipe, needed: Workload, clock: memory.Clock) -> Prediction:
    """The prediction; an error if it is more than there is."""
    factors = memory_plan.factors(keras.config.backend(), recipe.training.dtype)
    prediction = memory_plan.predict(needed, factors)
    free = _free_bytes(clock)
    if free is None or prediction.peak_bytes <= free or not recipe.training.memory_check:
        return prediction
    changes = next(that_fit(recipe, needed, factors, free), None)
    raise UserError(refusal(prediction, free, changes))


def _free_bytes(clock: memory.Clock) -> int | None:
    """What the whole run can have: free now, or taken by it already. None where an accelerator does not tell."""
    if backend.on_accelerator():
        return backend.device_bytes()
    return memory.available_bytes() + clock.taken_bytes


def that_fit(recipe: Recipe, needed: Workload, factors: Mapping[str, float], free: int) -> Iterator[str]:
    """Settings with which it fits, the smallest change first; none of them changes the result."""
    training, rows = recipe.training, recipe.evaluation.batch_size
    micro_batches = [
        n for n in range(training.accumulation, training.batch_size + 1) if training.batch_size % n == 0
    ]
    judged = [rows >> halvings for halvings in range(rows.bit_length())]
    # What comes first changes last: recomputing costs time, smaller batches hardly any.
    for remat, judged_rows, accumulation in itertools.product(
        sorted({training.remat, True}), judged, micro_batches
    ):
        smaller = dataclasses.replace(
            needed,
            remat=remat,
            accumulated=accumulation > 1,
            training=dataclasses.replace(needed.training, rows=training.batch_size // accumulation),
            held_out=dataclasses.replace(needed.held_out, rows=judged_rows),
            cache_rows=needed.cache_rows and answered_rows(judged_rows),
        )
        if memory_plan.predict(smaller, factors).peak_bytes <= free:
            values = {"training.remat": str(remat).lower(), "training.accumulation": accumulation}
            yield _settings(recipe, values | {"evaluation.batch_size": judged_rows})


def _settings(recipe: Recipe, values: Mapping[str, object]) -> str:
    """Those values that are not the recipe's, as `--set` takes them."""
    now = dict(flat(dataclasses.asdict(recipe)))
    return ", ".join(f"{key}={value}" for key, value in values.items() if str(now[key]).lower() != str(value))


def refusal(prediction: Prediction, free: int, fitting: str | None) -> str:
    parts = sorted(prediction.parts.items(), key=lambda part: -part[1])
    most = ", ".join(f"{name} {_gib(size)}" for name, size in parts[:3])
    advice = (
        f"It fits with {fitting}; the result is the same."
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
