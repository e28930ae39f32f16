"""The tables of a report: what page.py shows in a terminal and in `report.md`."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from keras_mtp.report import Report

SPELT = {"token_f1": "token F1", "rouge_l": "ROUGE-L"}  # metrics, as people write them


class Grid(NamedTuple):
    """A table.

    Args:
        note: what to say behind the title where there is room.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def results(report: "Report") -> Grid:
    """What the model was worth before and after, by head and by measure."""
    examples = f"({report.held_out_n} examples)"
    rows = []
    for name, head in report.held_out.items():
        loss = f"{name}: held-out loss, nats per token {examples}"
        rows.append((loss, f"{head.loss_before:.4f}", f"{head.loss_after:.4f}"))
        rows.append((f"{name}: held-out top-1 {examples}", f"{head.top1_before:.1%}", f"{head.top1:.1%}"))
    for task in (report.task, *report.task.further):
        metric = SPELT.get(task.metric, task.metric.replace("_", " "))
        if task.n:
            before, after = (_share(value, task.n) for value in (task.value_before, task.value))
            rows.append((f"{metric} on {task.n} test items", before, after))
    title = f"{report.model} on {report.data} ({report.backend}, seed {report.seed}, {report.steps} steps)"
    return Grid(title, ("", "before", "after"), rows)


def by_source(report: "Report", heads: int | None = None) -> Grid | None:
    """The held-out losses of the first `heads` heads by source of the data, where they name any."""
    if not report.held_out_by_source:
        return None
    rows = []
    for source, result in report.held_out_by_source.items():
        scores = [*result.heads.values()][:heads]
        losses = [f"{loss:.4f}" for head in scores for loss in (head.loss_before, head.loss_after)]
        rows.append([" ".join(source.split()), str(result.n), *losses])
    whose = [f"{name} {when}" for name in [*report.held_out][:heads] for when in ("before", "after")]
    return Grid("Held-out loss by source, nats per token", ["source", "examples", *whose], rows)


def gradients(report: "Report") -> Grid | None:
    """How large each head's gradient was and where it pointed, where that was measured."""
    if not report.gradients:
        return None
    rows = [
        [
            name,
            *(f"{norm:.3g}" for norm in (found.norm_first, found.norm_last, found.norm)),
            "" if found.cosine is None else f"{found.cosine:+.3f}",
        ]
        for name, found in report.gradients.items()
    ]
    title = f"Gradient of each head's loss at the trained weights outside the heads, {report.gradients_n} steps measured"
    columns = ("head", "norm, first", "norm, last", "norm, mean", "cosine to head_1, mean")
    return Grid(title, columns, rows, "the loss without its weight; see `metrics.csv` for every one")


def _share(value: float, n: int) -> str:
    """A share with its 95 % Wilson score interval, which stays honest at 0 of n, where a standard error is 0."""
    z = 1.96
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return f"{value:.1%} ({max(centre - reach, 0):.1%} to {min(centre + reach, 1):.1%})"
