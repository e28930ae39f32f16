"""What a study keeps of every run: one small JSON file, by which the run need not be repeated.

A study outlives its process by these files, and they are what is published: everything in a report is computed from them.
"""

import csv
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from keras_mtp.disk import finite, write_text
from keras_mtp.errors import UserError
from keras_mtp.metrics import norm_column
from keras_mtp.recipe import Recipe, flat, from_tables
from keras_mtp.run_folder import ANSWERS, HELD_OUT, METRICS, REPORT

FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One finished run of one arm.

    Args:
        format: version of this layout. arm: its name. point: where in the grid. seed: of the run.
        recipe: all its settings, but for where this machine keeps the data.
        backend: what it ran on. model: the base model's name. data: the task's title.
        items: SHA-256 of the held-out examples' ids, in order: runs with the same are compared item by item.
        tokens: answer tokens of every held-out item. nats_before, nats: head_1's summed loss on them.
        steps, curve: head_1's held-out loss (nats per token) at these joint steps.
        metric: the task's. scores: one per test item, none if none were answered.
        seconds: of training, the heads' warm-up included.
        versions: by package.
        step_seconds: by stage ("warmup", "joint"), the median time from the end of a step to that of the next without an
            evaluation between; nothing for a stage too short to tell.
        gradients: by column of `metrics.csv`, with their "step", what `training.probe_every` had measured; else nothing.
    """

    format: int
    arm: str
    point: dict[str, Any]
    seed: int
    recipe: dict[str, Any]
    backend: str
    model: str
    data: str
    items: str
    tokens: list[int]
    nats_before: list[float]
    nats: list[float]
    steps: list[int]
    curve: list[float]
    metric: str
    scores: list[float]
    seconds: float
    versions: dict[str, str]
    step_seconds: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, list[float]] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Head_1's held-out loss, nats per answer token."""
        return float(np.sum(self.nats) / np.sum(self.tokens))

    @property
    def loss_before(self) -> float:
        """The same before training."""
        return float(np.sum(self.nats_before) / np.sum(self.tokens))


def settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields without where this machine keeps the data."""
    tables = asdict(recipe)
    tables["data"]["source"] = Path(tables["data"]["source"]).name
    return tables


def collect(
    run: Path, *, arm: str, point: Mapping[str, Any], recipe: Recipe, versions: Mapping[str, str]
) -> Result:
    """Reads a finished run's folder."""
    report = json.loads((run / REPORT).read_text(encoding="utf-8"))
    held_out, log = _rows(run / HELD_OUT), _rows(run / METRICS)
    curve = [row for row in log if row["stage"] == "joint" and row["held_out_head_1_loss"]]
    # By line feeds alone: what a model says may hold every other line separator.
    answers = (run / ANSWERS).read_text(encoding="utf-8").split("\n")
    return Result(
        format=FORMAT,
        arm=arm,
        point=dict(point),
        seed=recipe.training.seed,
        recipe=settings(recipe),
        backend=report["backend"],
        model=report["model"],
        data=report["data"],
        items=hashlib.sha256("\n".join(row["id"] for row in held_out).encode()).hexdigest(),
        tokens=[int(row["head_1_tokens"]) for row in held_out],
        nats_before=[float(row["head_1_nats_before"]) for row in held_out],
        nats=[float(row["head_1_nats"]) for row in held_out],
        steps=[int(row["step"]) for row in curve],
        curve=[float(row["held_out_head_1_loss"]) for row in curve],
        metric=report["task"]["metric"],
        scores=[json.loads(answer)["score"] for answer in answers if answer],
        seconds=float(log[-1]["seconds"]),
        versions=dict(versions),
        step_seconds=_step_seconds(log),
        gradients=_gradients(log),
    )


def _step_seconds(log: Sequence[Mapping[str, str]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for before, after in itertools.pairwise(log):
        if before["stage"] == after["stage"] and not before["held_out_head_1_loss"]:
            taken = float(after["seconds"]) - float(before["seconds"])
            found.setdefault(after["stage"], []).append(taken)
    return {stage: float(np.median(taken)) for stage, taken in found.items()}


def _gradients(log: Sequence[Mapping[str, str]]) -> dict[str, list[float]]:
    measured = [row for row in log if row.get(norm_column("head_1"))]
    wanted = ["step", *(column for column in log[0] if "_gradient_" in column)] if measured else []
    return {column: [float(row[column]) for row in measured] for column in wanted}


def write(result: Result, path: Path) -> None:
    """Writes the file, whole or not at all. Losses that are no number become null."""
    write_text(path, json.dumps(finite(asdict(result)), allow_nan=False) + "\n")


def read(path: Path, recipe: Recipe, backend: str) -> Result:
    """Reads a file that `write` wrote.

    Args:
        recipe, backend: the run that it is to be the result of.

    Raises:
        UserError: damaged, of another format, of another recipe, or of another backend.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {spec.name for spec in fields(Result)}  # what a result is without has its default
        result = Result(**{name: value for name, value in content.items() if name in names})
        result = Result(**(asdict(result) | {"nats": _numbers(result.nats), "curve": _numbers(result.curve)}))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}. Remove it, and the run is made again.") from error
    different = ["format"] if result.format != FORMAT else _different(result.recipe, settings(recipe))
    if different:
        raise UserError(
            f"{path} is the result of another recipe or version: {', '.join(different)} differs. Give the study "
            "another folder with --run, or remove the file."
        )
    if result.backend != backend:
        raise UserError(
            f"All runs of a study must be made on one backend. Received: {backend}, and {path}, which was made on "
            f"{result.backend}. Go on with --backend {result.backend}, or give the study another folder with --run."
        )
    return result


def _different(tables: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The fields in which a recipe that was kept is not the wanted one. Those that were not there yet had their defaults."""
    try:
        kept = dict(flat(asdict(from_tables(tables))))
    except UserError as error:
        return [str(error)]
    return [key for key, value in flat(wanted) if kept[key] != value]


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
