"""A plan as a table, as a command to copy, and as JSON."""

import shlex
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from keras_mtp.plan import Option, Plan
from keras_mtp.plan.quantities import duration, scaled
from keras_mtp.workload import as_text

TOO_LOW = 0.3  # by so much was a prediction of 24.7 GB on an H200 (1B shape, torch): tools/benchmark-results.md, README


def table(plan: Plan) -> Table:
    """A row for every way to keep the weights."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown.add_column("weights")
    for column in ("batch", "remat", "peak", "in", "longest row", "a step"):
        shown.add_column(column, justify="right")
    if plan.speed:
        shown.add_column("an epoch", justify="right")
    for option in plan.options:
        shown.add_row(*_row(plan, option))
    return shown


def _row(plan: Plan, option: Option) -> list[str]:
    training = option.recipe.training
    rows = training.batch_size // training.accumulation
    batch = f"{rows}" if training.accumulation == 1 else f"{training.accumulation} x {rows}"
    peak = f"{option.prediction.peak_bytes / 1e9:.1f} GB"
    time = [duration(option.epoch_flops / (plan.speed * option.devices))] if plan.speed else []
    return [
        option.precision,
        batch,
        "yes" if training.remat else "no",
        peak if option.fits else f"too much: {peak}",
        option.prediction.phase,
        f"{option.longest_tokens} tokens" if option.longest_tokens else "none",
        scaled(option.step_flops, "FLOP"),
        *(time if option.fits else ["-" for _ in time]),
    ]


def notes(plan: Plan) -> list[str]:
    """What the table is of, and what it does not tell."""
    texts, sizes = plan.texts, plan.model.sizes
    lines = [
        f"{plan.model.name}: {sizes.num_layers} blocks of width {sizes.hidden_dim}, {plan.memory_bytes / 1e9:.1f} GB, "
        f"{plan.backend} on {'an accelerator' if plan.accelerator else 'a CPU'}.",
        f"Data: {texts.examples} examples, rows of {texts.mean_tokens:.0f} tokens on average and {texts.tokens} at most; "
        f"{texts.origin}.",
    ]
    if plan.model.tokenizer_name != plan.model.name and texts.counted:
        lines[-1] += f" Counted with the tokenizer of {plan.model.tokenizer_name}."
    return [*lines, *filter(None, [plan.options[0].recipe.rate_note])]


def explanation(plan: Plan) -> str:
    """How to read the table."""
    devices = plan.options[0].devices
    if plan.accelerator:
        doubt = f"GPU runs were seen to take up to {TOO_LOW:.0%} more, and the context comes on top"
        doubt += f": for a GPU of 24 GB say --memory {24 / (1 + TOO_LOW):.0f}GB."
    else:
        doubt = "The imported libraries come on top."
    return "\n".join(
        [
            *([f"Of each of {devices} devices."] if devices > 1 else []),
            "batch: rows at a time; 4 x 2 are four micro-batches of two. longest row: one at a time, with remat.",
            "a step: an optimizer step; evaluation and the heads' warm-up come on top.",
            f"All of it is predicted. {doubt}",
        ]
    )


def command(plan: Plan, name: str, given: Sequence[str], data: str | None) -> str | None:
    """The command that runs what was chosen; None where nothing fits.

    Args:
        name: the recipe's. given: the user's own assignments. data: the user's own source of data.
    """
    if plan.chosen is None:
        return None
    changes = [f"{key}={as_text(value)}" for key, value in plan.chosen.changes.items()]
    words = ["keras-mtp", "recipe", name, "--backend", plan.backend, "--model", plan.model.name]
    words += ["--data", data] if data else []
    for assignment in [*given, *changes]:
        words += ["--set", assignment]
    return shlex.join(words)


def to_json(plan: Plan, run: str | None) -> dict[str, Any]:
    """Everything in the table, in bytes, operations and seconds. `run`: the command."""
    texts = plan.texts
    return {
        "model": plan.model.name,
        "backend": plan.backend,
        "accelerator": plan.accelerator,
        "memory_bytes": plan.memory_bytes,
        "flops_per_second": plan.speed,
        "data": {
            "examples": texts.examples,
            "tokens": texts.tokens,
            "mean_tokens": texts.mean_tokens,
            "answer_tokens": texts.labelled,
            "origin": texts.origin,
        },
        "options": [_option(plan, option) for option in plan.options],
        "chosen": plan.chosen.precision if plan.chosen else None,
        "command": run,
    }


def _option(plan: Plan, option: Option) -> dict[str, Any]:
    prediction = option.prediction
    return {
        "weights": option.precision,
        "fits": option.fits,
        "settings": dict(option.changes),
        "peak_bytes": prediction.peak_bytes,
        "peak_phase": prediction.phase,
        "parts_bytes": {name: round(size) for name, size in prediction.parts.items()},
        "longest_tokens": option.longest_tokens,
        "flops_per_step": option.step_flops,
        "flops_per_epoch": option.epoch_flops,
        "devices": option.devices,
        "seconds_per_epoch": option.epoch_flops / (plan.speed * option.devices) if plan.speed else None,
    }
