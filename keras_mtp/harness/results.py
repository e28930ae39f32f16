"""What came out of lm-eval's tasks: a file for each, whole, and a table for the screen."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from keras_mtp.disk import write_text

LOGGED = ("doc_id", "filter", "target", "resps", "filtered_resps")  # of what lm-eval keeps of an item


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a task.

    Args:
        name: what is measured. filter: what was made of the answers first; "none" for nothing.
        value: over all items. stderr: its standard error, where lm-eval has one.
    """

    name: str
    filter: str
    value: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One of lm-eval's tasks, or a group of them.

    Args:
        task: its name. metrics: its numbers. n: items; None for a group.
        shots: examples in the prompt. version: the task's own.
        setup: what else decides the numbers: model, backend, ...
        items: each item's answer and scores, one entry for each filter.
    """

    task: str
    metrics: Sequence[Metric]
    n: int | None
    shots: int | None
    version: Any
    setup: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The fields, without the items."""
        return {key: value for key, value in asdict(self).items() if key != "items"}


def read_results(found: Mapping[str, Any], setup: Mapping[str, Any]) -> list[TaskResult]:
    """What `lm_eval.evaluator.evaluate` returned."""
    rows = {**found["results"], **found.get("groups", {})}
    results = []
    for task, row in rows.items():
        if metrics := _metrics(row):
            count = found.get("n-samples", {}).get(task)
            results.append(
                TaskResult(
                    task=task,
                    metrics=metrics,
                    n=count and count["effective"],
                    shots=found.get("n-shot", {}).get(task),
                    version=found.get("versions", {}).get(task),
                    setup=setup,
                    items=[_item(sample) for sample in found.get("samples", {}).get(task, ())],
                )
            )
    return results


def write(results: Sequence[TaskResult], folder: Path) -> None:
    """Writes `TASK.json` for every task; one that is there already is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        name = re.sub(r"[^\w+-]", "_", result.task)
        content = result.to_json() | {"items": result.items}
        write_text(folder / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False, default=_plain))


def table(results: Sequence[TaskResult]) -> Table:
    """One row for each number."""
    grid = Table("task", "metric", "filter", box=None)
    for column in ("value", "± standard error", "n"):
        grid.add_column(column, justify="right")
    for result in results:
        for metric in result.metrics:
            error = "" if metric.stderr is None else f"{metric.stderr:.4f}"
            n = "" if result.n is None else str(result.n)
            grid.add_row(result.task, metric.name, metric.filter, f"{metric.value:.4f}", error, n)
    return grid


def _metrics(row: Mapping[str, Any]) -> list[Metric]:
    """lm-eval writes "exact_match,strict-match" and "exact_match_stderr,strict-match"."""
    found = []
    for key, value in row.items():
        name, comma, filter_name = key.partition(",")
        if comma and not name.endswith("_stderr") and not isinstance(value, str):
            error = row.get(f"{name}_stderr,{filter_name}")
            stderr = None if error is None or isinstance(error, str) else float(error)
            found.append(Metric(name=name, filter=filter_name, value=float(value), stderr=stderr))
    return found


def _item(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {key: sample[key] for key in (*LOGGED, *sample["metrics"])}


def _plain(value: Any) -> Any:
    """NumPy's numbers, and whatever a task's data may hold."""
    return value.item() if hasattr(value, "item") else str(value)
