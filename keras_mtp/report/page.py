"""A report as people read it: the table in the terminal, and `report.md`."""

import math
import shlex
import textwrap
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from keras_mtp.run_folder import CURVES, GRADIENTS

if TYPE_CHECKING:
    from keras_mtp.report import Report

GRADIENT_COLUMNS = ("head", "norm, first", "norm, last", "norm, mean", "cosine to head_1, mean")
SPELT = {"token_f1": "token F1", "rouge_l": "ROUGE-L"}  # metrics, as people write them


def summary(report: "Report") -> str:
    """The results as plain text for a terminal, at most 100 columns wide."""
    console = Console(file=StringIO(), width=100, color_system=None, markup=False)
    console.print(_table(_title(report), ("", "before", "after"), _results(report)))
    if report.held_out_by_source:
        first = [
            row[:4] for row in (_sources_columns(report), *_sources(report))
        ]  # head_1's: four fit a terminal
        console.print(_table("\nHeld-out loss by source, nats per token", first[0], first[1:]))
    if report.gradients:
        console.print(_table(f"\n{_gradients_title(report)}", GRADIENT_COLUMNS, _gradients(report)))
    text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
    kept = _kept(report)
    notes = [_caution(report), kept and f"Kept: {kept}", _cost(report)]
    return "\n".join([text, "", *(textwrap.fill(note, 100) for note in notes if note)])


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*columns, title=title, title_justify="left", title_style="", box=None)
    for row in rows:
        table.add_row(*row)
    return table


def markdown(report: "Report") -> str:
    """The content of `report.md`."""
    caution = _caution(report)
    rows = [f"| {label} | {before} | {after} |" for label, before, after in _results(report)]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    revision = f", revision {report.data_revision}" if report.data_revision else ""
    note = "".join(f". {text}" for text in (report.data_note, _passed_over(report)) if text)
    facts = {
        "Model": _model(report),
        "Data": f"{report.data}, from {report.data_source}{revision}. Licence: {report.data_licence}{note}",
        "Start": _start(report),
        "Trained": _tuned(report),
        "Training": f"{report.steps} {_what(report)}{_early(report)}, seed {report.seed}. {_skipped(report)}",
        "Result": _kept(report),
        "Cost": _cost(report),
        "Software": f"{versions}; Keras on {report.backend}",
        "Date": report.date,
    }
    return "\n".join(
        [
            f"# {_title(report)}",
            "",
            *([f"> **{caution}**", ""] if caution else []),
            "| | before | after |",
            "|---|---|---|",
            *rows,
            "",
            *_sources_markdown(report),
            f"![Loss over the run]({CURVES})",
            "",
            *_gradients_markdown(report),
            "Held-out examples are taken out of the training split and never trained on; a held-out loss is the sum of",
            "nats over all their answer tokens, divided by the number of these tokens. `head_1` predicts the next token,",
            "`head_2` the one after it, and so on. The test items were looked at only before the first and after the last",
            "training step. In brackets stands the 95 % Wilson interval: it covers the choice of test items, not that of the seed.",
            "For a score that an item can earn in part it is wider than need be.",
            "",
            *(f"- **{name}:** {text}" for name, text in facts.items() if text),
            "",
            "To repeat the run, with the recipe as it was run beside this report:",
            "",
            f"    {shlex.join(report.command)}",
            "",
        ]
    )


def _title(report: "Report") -> str:
    return f"{report.model} on {report.data} ({report.backend}, seed {report.seed}, {report.steps} steps)"


def _results(report: "Report") -> list[tuple[str, str, str]]:
    """Rows of (what, before, after)."""
    rows = []
    for name, head in report.held_out.items():
        rows.append(
            (f"{name}: held-out loss, nats per token", f"{head.loss_before:.4f}", f"{head.loss_after:.4f}")
        )
        rows.append((f"{name}: held-out top-1", f"{head.top1_before:.1%}", f"{head.top1:.1%}"))
    for task in (report.task, *report.task.further):
        metric = SPELT.get(task.metric, task.metric.replace("_", " "))
        label = f"{metric} on {task.n} test items"
        if task.n:
            rows.append((label, _share(task.value_before, task.n), _share(task.value, task.n)))
    first = report.held_out_n
    return [(f"{what} ({first} examples)" if "held-out" in what else what, b, a) for what, b, a in rows]


def _sources(report: "Report") -> list[list[str]]:
    """Rows of source, examples, before and after of every head."""
    rows = []
    for source, result in report.held_out_by_source.items():
        losses = [loss for head in result.heads.values() for loss in (head.loss_before, head.loss_after)]
        rows.append([" ".join(source.split()), str(result.n), *(f"{loss:.4f}" for loss in losses)])
    return rows


def _sources_columns(report: "Report") -> list[str]:
    heads = [f"{name} {when}" for name in report.held_out for when in ("before", "after")]
    return ["source", "examples", *heads]


def _sources_markdown(report: "Report") -> list[str]:
    if not report.held_out_by_source:
        return []
    columns = _sources_columns(report)
    rows = [columns, ["---"] * len(columns), *_sources(report)]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return [
        "Held-out loss by source, nats per token:",
        "",
        *(f"| {' | '.join(row)} |" for row in escaped),
        "",
    ]


def _gradients_title(report: "Report") -> str:
    return f"Gradient of each head's loss at the trained weights outside the heads, {report.gradients_n} steps measured"


def _gradients(report: "Report") -> list[list[str]]:
    """Rows of head, norms and cosine."""
    return [
        [
            name,
            *(f"{norm:.3g}" for norm in (g.norm_first, g.norm_last, g.norm)),
            "" if g.cosine is None else f"{g.cosine:+.3f}",
        ]
        for name, g in report.gradients.items()
    ]


def _gradients_markdown(report: "Report") -> list[str]:
    if not report.gradients:
        return []
    rows = [GRADIENT_COLUMNS, ["---"] * len(GRADIENT_COLUMNS), *_gradients(report)]
    return [
        f"{_gradients_title(report)} (the loss without its weight; see `metrics.csv` for every one):",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"![Gradients over the run]({GRADIENTS})",
        "",
    ]


def _share(value: float, n: int) -> str:
    """A share with its 95 % Wilson score interval, which stays honest at 0 of n, where a standard error is 0."""
    z = 1.96
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return f"{value:.1%} ({max(centre - reach, 0):.1%} to {min(centre + reach, 1):.1%})"


def _caution(report: "Report") -> str:
    if report.is_benchmark:
        return ""
    if report.data_source == "builtin":
        return f"The data are {report.data}. They show that training works; the score is not comparable with any published one."
    return f"The data are {report.data}: the score is not comparable with any published one."


def _model(report: "Report") -> str:
    revision = f", revision {report.model_revision}" if report.model_revision else ""
    sha256 = f", SHA-256 {report.model_sha256}" if report.model_sha256 else ""
    notice = f". {report.model_notice}" if report.model_notice else ""
    return f"{report.model}{revision}{sha256}. Licence: {report.model_licence}{notice}"


def _start(report: "Report") -> str:
    if not report.started_from:
        return ""
    taken = "tuned weights" if report.method != "prefix" else "prefix"
    taken += " and heads" if report.started_heads else ""
    return (
        f"{taken} of the run {report.started_from}, trained weights {report.started_from_checkpoint[:12]}... "
        "(SHA-256). *Before* is with them."
    )


def _tuned(report: "Report") -> str:
    """What the method trains, and how much that is."""
    if report.heads_alone:
        return "the heads alone"
    return f"{report.tuned} ({report.tuned_weights:,} weights), by the method {report.method}"


def _what(report: "Report") -> str:
    return "optimizer steps of the heads alone" if report.heads_alone else "joint optimizer steps"


def _early(report: "Report") -> str:
    return ", stopped early" if report.stopped_early else ""


def _kept(report: "Report") -> str:
    if report.kept_step is None:
        return ""
    return (
        f"the weights of step {report.kept_step}, with which head_1's held-out loss was lowest. It chose them, so it "
        "flatters a little; the test items had no say."
    )


def _skipped(report: "Report") -> str:
    truncated = f" and {report.truncated_examples} truncated" if report.truncated_examples else ""
    marked = (
        f", {report.marked_examples} skipped for holding a special token's text"
        if report.marked_examples
        else ""
    )
    return (
        f"{report.skipped_examples} training examples were skipped{truncated} for their length{marked}; "
        f"{report.padding_share:.0%} of the tokens computed were padding."
    )


def _passed_over(report: "Report") -> str:
    count = report.task.passed_over
    return f"{count} test items were passed over, their prompts being too long" if count else ""


def _cost(report: "Report") -> str:
    cut = f" The run was cut off and went on, {report.continued} times." if report.continued else ""
    return (
        f"{report.seconds / 60:.1f} minutes, {report.tokens_per_second:.0f} tokens/s in training, "
        f"{report.peak_bytes / 2**30:.2f} GiB at the peak beyond the imports"
        f"{_predicted(report)}.{cut}"
    )


def _predicted(report: "Report") -> str:
    return (
        f" ({report.predicted.peak_bytes / 2**30:.2f} predicted before training)" if report.predicted else ""
    )
