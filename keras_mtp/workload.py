"""What of a recipe decides the memory it takes and the work it is: from sizes and lengths alone, without Keras."""

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from keras_mtp import memory_plan
from keras_mtp.at_once import answered_rows
from keras_mtp.flops import Positions, Sizes
from keras_mtp.memory_plan import Workload
from keras_mtp.recipe import Recipe, flat

NOTHING = Positions(rows=0, own=0)


def workload(
    recipe: Recipe,
    sizes: Sizes,
    *,
    tied: bool,
    chunk_rows: int,
    training: Positions = NOTHING,
    held_out: Positions = NOTHING,
    cache: tuple[int, int] = (0, 0),
    lengths: int = 1,
    judged_lengths: int = 1,
) -> Workload:
    """What of a recipe and its model decides the memory; without more arguments, of weights and what trains them.

    Args:
        tied, chunk_rows, training, held_out, lengths, judged_lengths: as in `Workload`. cache: rows, and slots per row, of the key-value cache.
    """
    float32 = recipe.training.dtype == "float32"
    heads, tuned = recipe.heads, recipe.tuning
    return Workload(
        sizes=sizes,
        tied=tied,
        training=training,
        held_out=held_out,
        chunk_rows=chunk_rows,
        stored_bytes=4 if float32 or "full" in tuned.methods else 2,
        compute_bytes=4 if float32 else 2,
        quantize=recipe.model.quantize,
        method=tuned.method,
        prefix_length=recipe.prefix_length,
        lora_rank=tuned.lora_rank,
        lora_targets=tuned.projections if "lora" in tuned.methods else (),
        model_devices=recipe.distribution.model,
        snapshots=bool(recipe.training.snapshot_every),
        heads=heads.count,
        kind=heads.kind,
        attach=heads.attach,
        heads_frozen=heads.freeze,
        heads_alone=recipe.heads_alone,
        warmup=bool(heads.warmup_steps) and not recipe.heads_alone,
        accumulated=recipe.training.accumulation > 1,
        remat=recipe.training.remat,
        keep_best=recipe.training.keep == "best",
        cache_rows=cache[0],
        cache_slots=cache[1],
        lengths=lengths,
        judged_lengths=judged_lengths,
    )


def micro_batch(recipe: Recipe, tokens: int, shared: int) -> Positions:
    """What one device has of a micro-batch, of padded rows of `tokens` that begin with `shared` tokens all alike."""
    return packed(recipe, _rows(recipe, recipe.training.accumulation), tokens, shared)


def _rows(recipe: Recipe, accumulation: int) -> int:
    return recipe.training.batch_size // accumulation // recipe.distribution.data


def packed(recipe: Recipe, rows: int, tokens: int, shared: int) -> Positions:
    """The positions of so many rows, as `TrainingView` packs them."""
    looks_ahead = recipe.heads.count if recipe.heads.kind == "sequential" else 0
    shared = max(shared - looks_ahead, 0)
    computed = 0 if "prefix_kv" in recipe.tuning.methods else recipe.prefix_length
    kept = recipe.prefix_length - computed
    return Positions(rows=rows, own=tokens - shared, shared=computed + shared, kept=kept)


def that_fit(
    recipe: Recipe,
    needed: Workload,
    factors: Mapping[str, float],
    free: float,
    fixed: Collection[str] = (),
) -> Iterator[dict[str, Any]]:
    """Changes of settings with which a run fits, the smallest first; none of them changes the result.

    Args:
        needed: what the recipe as it is needs. factors: of the backend. free: bytes. fixed: settings that are not changed.
    """
    now = dict(flat(dataclasses.asdict(recipe)))
    training, rows = recipe.training, recipe.evaluation.batch_size
    micro_batches = [
        n
        for n in range(training.accumulation, training.batch_size + 1)
        if training.batch_size % (n * recipe.distribution.data) == 0
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
            training=dataclasses.replace(needed.training, rows=_rows(recipe, accumulation)),
            held_out=dataclasses.replace(needed.held_out, rows=judged_rows),
            cache_rows=needed.cache_rows and answered_rows(judged_rows),
        )
        values = {"training.remat": remat, "training.accumulation": accumulation}
        values["evaluation.batch_size"] = judged_rows
        changes = {key: value for key, value in values.items() if now[key] != value}
        if not {*changes} & {*fixed} and memory_plan.predict(smaller, factors).peak_bytes <= free:
            yield changes


def as_text(value: Any) -> str:
    """A setting's value as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
