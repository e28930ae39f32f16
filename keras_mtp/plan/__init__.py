"""What fits into a given memory, and how long an epoch takes, before anything is downloaded or computed.

    a recipe, a model's sizes, the data's lengths
        -> for every way to keep the weights: the smallest change of the recipe that fits (that_fit)
        -> its peak (memory_plan/), its work (flops.py), the seconds at a given speed

No Keras, no backend: everything here is arithmetic.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from keras_mtp import memory_plan
from keras_mtp.at_once import CHUNK_ROWS, CHUNK_ROWS_ON_ACCELERATOR, answered_rows, cache_slots
from keras_mtp.errors import UserError
from keras_mtp.flops import Positions, step_flops
from keras_mtp.memory_plan import Prediction, Workload
from keras_mtp.plan.model import PlannedModel
from keras_mtp.plan.texts import Texts
from keras_mtp.recipe import Recipe, flat, updated
from keras_mtp.workload import micro_batch, packed, that_fit, workload

# The most precise first. Frozen weights are stored in what is computed in, see `model.dtype`.
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"model.dtype": "float32", "training.dtype": "float32", "model.quantize": "none"},
    "bfloat16": {"training.dtype": "mixed_bfloat16", "model.quantize": "none"},
    "int8": {"training.dtype": "mixed_bfloat16", "model.quantize": "int8"},
    "int4": {"training.dtype": "mixed_bfloat16", "model.quantize": "int4"},
}
LONGEST = 1 << 17  # tokens; no Llama here reads more
REACH = 2  # slots behind an answer's last token that a plain pass may touch
STEP = 8  # tokens between two lengths that are tried


@dataclass(frozen=True, kw_only=True)
class Option:
    """A way to keep the weights, and the recipe with which it fits.

    Args:
        precision: its name. recipe: changed as little as it must be; if nothing fits, as far as it can be.
        changes: settings that are not the recipe's. fits: whether it does. prediction: of its memory.
        longest_tokens: the longest row that would fit, one at a time and rematerialised; 0 for none.
        step_flops: of an optimizer step on rows of average length, all devices together. epoch_flops: of all its steps.
    """

    precision: str
    recipe: Recipe
    changes: Mapping[str, Any]
    fits: bool
    prediction: Prediction
    longest_tokens: int
    step_flops: float
    epoch_flops: float

    @property
    def devices(self) -> int:
        """That train together."""
        return self.recipe.distribution.data * self.recipe.distribution.model


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What fits.

    Args:
        model, texts, backend, accelerator, memory_bytes: what it is for. speed: operations per second of one device; None if nobody says.
        options: ways to keep the weights, the most precise first.
    """

    model: PlannedModel
    texts: Texts
    backend: str
    accelerator: bool
    memory_bytes: float
    speed: float | None
    options: tuple[Option, ...]

    @property
    def chosen(self) -> Option | None:
        """The most precise that fits."""
        return next((option for option in self.options if option.fits), None)


def make(
    recipe: Recipe,
    model: PlannedModel,
    texts: Texts,
    *,
    memory_bytes: float,
    backend: str,
    accelerator: bool = True,
    speed: float | None = None,
    fixed: Collection[str] = (),
) -> Plan:
    """Finds what fits.

    Args:
        memory_bytes: of one device, all of it. accelerator: whether that is no CPU. fixed: settings that stay as they are.
    """
    search = _Search(recipe, model, texts, memory_bytes, backend, accelerator, fixed)
    options = []
    for name, settings in PRECISIONS.items():
        variant = _variant(recipe, settings, fixed)
        if variant is not None:
            options.append(search.option(name, variant))
    if not options:
        options = [search.option("as set", recipe)]
    return Plan(
        model=model,
        texts=texts,
        backend=backend,
        accelerator=accelerator,
        memory_bytes=memory_bytes,
        speed=speed,
        options=tuple(options),
    )


def _variant(recipe: Recipe, settings: Mapping[str, Any], fixed: Collection[str]) -> Recipe | None:
    """The recipe with other weights; None where that cannot be, or is not wanted."""
    try:
        variant = updated(recipe, settings)
    except UserError:  # full training of weights that are stored short
        return None
    changed = _changes(recipe, variant)
    return None if {*changed} & {*fixed} else variant


@dataclass(frozen=True)
class _Search:
    """Finds the option for each way to keep the weights; fields as in `make`."""

    recipe: Recipe
    model: PlannedModel
    texts: Texts
    memory_bytes: float
    backend: str
    accelerator: bool
    fixed: Collection[str]

    def option(self, precision: str, variant: Recipe) -> Option:
        """That of the recipe with its weights kept so."""
        factors = self._factors(variant)
        fitting = that_fit(variant, self.needed(variant), factors, self.memory_bytes, self.fixed)
        changes = next(fitting, None)
        least = {key: value for key, value in _least(variant).items() if key not in self.fixed}
        found = updated(variant, least if changes is None else changes)
        each = work(found, self.model, self.texts)
        return Option(
            precision=precision,
            recipe=found,
            changes=_changes(self.recipe, found),
            fits=changes is not None,
            prediction=memory_plan.predict(self.needed(found), factors),
            longest_tokens=self._longest(updated(variant, least)),
            step_flops=each,
            epoch_flops=each * (self.texts.examples // found.training.batch_size),
        )

    def needed(self, recipe: Recipe, tokens: int | None = None) -> Workload:
        """What decides a run's memory; with rows of so many tokens, if not of the data's."""
        judged, texts = recipe.evaluation, self.texts
        tokens = max(tokens or texts.tokens, texts.shared + 1)
        slots = cache_slots(recipe.prefix_length, texts.prompt_tokens, judged.max_new_tokens, REACH)
        answers = min(judged.limit, judged.test_limit) > 0
        return workload(
            recipe,
            self.model.sizes,
            tied=self.model.tied,
            chunk_rows=CHUNK_ROWS_ON_ACCELERATOR if self.accelerator else CHUNK_ROWS,
            training=micro_batch(recipe, tokens, texts.shared),
            held_out=packed(recipe, judged.batch_size, tokens, texts.shared),
            cache=(answered_rows(judged.batch_size), slots) if answers else (0, 0),
            lengths=texts.lengths,
        )

    def _longest(self, recipe: Recipe) -> int:
        low, high = 0, LONGEST // STEP + 1  # `low` steps fit, `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            needed = self.needed(recipe, middle * STEP)
            fits = memory_plan.predict(needed, self._factors(recipe)).peak_bytes <= self.memory_bytes
            low, high = (middle, high) if fits else (low, middle)
        return low * STEP

    def _factors(self, recipe: Recipe) -> Mapping[str, float]:
        return memory_plan.factors(self.backend, recipe.training.dtype, accelerator=self.accelerator)


def work(recipe: Recipe, model: PlannedModel, texts: Texts) -> float:
    """Operations of an optimizer step on rows of average length."""
    heads, tuned = recipe.heads, recipe.tuning
    own = packed(recipe, 1, round(texts.mean_tokens), texts.shared)
    rows = recipe.training.batch_size // recipe.training.accumulation
    of_micro_batch = step_flops(
        model.sizes,
        Positions(rows=rows, own=own.own, shared=own.shared, kept=own.kept),
        labelled_rows=round(rows * texts.labelled * (heads.count + (not recipe.heads_alone))),
        trained="heads" if recipe.heads_alone else tuned.method,
        lora_rank=tuned.lora_rank,
        lora_targets=tuned.projections if "lora" in tuned.methods else (),
        heads=heads.count,
        kind=heads.kind,
        attach=heads.attach,
        heads_trained=recipe.heads_alone or not heads.freeze,
        detached=heads.detach,
        remat=recipe.training.remat,
    )
    return recipe.training.accumulation * of_micro_batch.total


def _least(recipe: Recipe) -> dict[str, Any]:
    """Settings that take the least memory with the same result."""
    smallest = {
        "training.accumulation": recipe.training.batch_size // recipe.distribution.data,
        "evaluation.batch_size": 1,
    }
    return smallest | {"training.remat": True}


def _changes(recipe: Recipe, other: Recipe) -> dict[str, Any]:
    """Settings of `other` that are not the recipe's."""
    now = dict(flat(dataclasses.asdict(recipe)))
    return {key: value for key, value in flat(dataclasses.asdict(other)) if now[key] != value}
