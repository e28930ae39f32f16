"""What a run leaves to read: `report.json` for programs, `report.md` and `curves.png` for people.

Numbers stand with the number of items behind them, a share with its 95 % interval, and data that are no benchmark are
never called one.
"""

import json
import math
import shlex
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from keras_mtp import __version__, curves
from keras_mtp.run_folder import RECIPE, REPORT, write_text

if TYPE_CHECKING:
    from keras_mtp.evaluation import HeadScore, TaskScore
    from keras_mtp.memory import Clock
    from keras_mtp.models.backbone import BaseInfo
    from keras_mtp.recipe import Recipe
    from keras_mtp.starting_point import StartingPoint
    from keras_mtp.tasks.task import Task
    from keras_mtp.training import Trained

OWN_ANSWERS = "The heads learnt from the answers that the model itself gave to these prompts"

MARKDOWN, CURVES = "report.md", "curves.png"


@dataclass(frozen=True, kw_only=True)
class HeadResult:
    """One head on the held-out examples.

    Args:
        loss_before: nats per answer token before any training. loss_after: the same at the end.
        top1_before: share of answer tokens whose largest logit was right, before. top1: the same at the end.
    """

    loss_before: float
    loss_after: float
    top1_before: float
    top1: float


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The task's own score on answers generated for the test split.

    Args:
        metric: its name, as "exact_match". value_before, value: mean over the items, before and at the end.
        n: number of test items.
    """

    metric: str
    value_before: float
    value: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run's results and what is needed to repeat it.

    Args:
        recipe: the recipe's name. backend: what Keras ran on. seed: the recipe's. steps: optimizer steps done, the
            heads' warm-up aside. heads_alone: whether only heads were trained, for drafting.
        kept_step: the step whose weights are the result, where the held-out examples chose it; else None: the last one's.
        stopped_early: whether training ended before the recipe's number of steps.
        started_from: the run whose prefix and heads were the start, "" for none. started_from_checkpoint: the SHA-256
            of its trained weights. started_heads: how many heads were that run's too.
        model: the base model's name. model_revision: the hub's commit. model_sha256: of its files. model_licence: its
            licence. model_notice: what the licence wants to be shown.
        data: the task's title, as "GSM8K" or "generated word problems (not GSM8K)". data_source: "hub", "tfds",
            "builtin" or a path. data_revision: which version of it. data_licence: their licence. data_note: how they
            were split, where the task had to decide.
        is_benchmark: False if a score on these data is no benchmark result.
        held_out: results by head. held_out_n: number of held-out examples.
        task: the task's score.
        tokens_per_second: real tokens trained on per second, the warm-up aside.
        peak_bytes: peak resident memory less that after imports.
        seconds: of the whole run. padding_share: share of padding in what training computed.
        skipped_examples: training examples left out for their length. truncated_examples: those cut to it.
        date: when the run ended, ISO 8601. versions: by package. command: what repeats the run, argument by argument.
    """

    recipe: str
    backend: str
    model: str
    model_licence: str
    data: str
    data_source: str
    data_licence: str
    model_revision: str | None = None
    model_sha256: str = ""
    model_notice: str | None = None
    data_revision: str | None = None
    data_note: str = ""
    is_benchmark: bool
    seed: int
    steps: int
    heads_alone: bool = False
    kept_step: int | None = None
    stopped_early: bool = False
    started_from: str = ""
    started_from_checkpoint: str = ""
    started_heads: int = 0
    held_out: Mapping[str, HeadResult]
    held_out_n: int
    task: TaskResult
    tokens_per_second: float
    peak_bytes: int
    seconds: float
    padding_share: float
    skipped_examples: int
    truncated_examples: int = 0
    date: str
    versions: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`; `kept_step` and `started_from` are in it only where there is one."""
        heads = {
            name: {"loss_before": head.loss_before, "loss_after": head.loss_after, "top1": head.top1}
            for name, head in self.held_out.items()
        }
        content: dict[str, Any] = {
            "recipe": self.recipe,
            "backend": self.backend,
            "model": self.model,
            "data": self.data,
            "seed": self.seed,
            "steps": self.steps,
            "held_out": {**heads, "n": self.held_out_n},
            "task": {
                "metric": self.task.metric,
                "value_before": self.task.value_before,
                "value": self.task.value,
                "n": self.task.n,
            },
            "tokens_per_second": self.tokens_per_second,
            "peak_bytes": self.peak_bytes,
        }
        if self.kept_step is not None:
            content["kept_step"] = self.kept_step
        if self.started_from:
            content["started_from"] = {"run": self.started_from, "checkpoint": self.started_from_checkpoint}
        return _without_nan(content)


def from_run(
    *,
    recipe: "Recipe",
    backend: str,
    base: "BaseInfo",
    start: "StartingPoint",
    task: "Task",
    before: "tuple[Mapping[str, HeadScore], TaskScore]",
    after: "tuple[Mapping[str, HeadScore], TaskScore]",
    trained: "Trained",
    skipped_examples: int,
    truncated_examples: int = 0,
    rows: Sequence[curves.Row],
    clock: "Clock",
    folder: Path,
) -> Report:
    """Puts a run's results together.

    Args:
        before, after: scores of every head on the held-out examples, and of the test items.
        rows: of the metrics log; the speed is the median over its steps after the warm-up.
    """
    (heads_before, answers_before), (heads, answers) = before, after
    speeds = [row["tokens_per_second"] for row in rows if row["stage"] != "warmup" and row["step"]]
    return Report(
        recipe=recipe.name,
        backend=backend,
        model=base.name,
        model_revision=base.revision,
        model_sha256=base.sha256,
        model_licence=base.licence,
        model_notice=base.notice,
        data=task.title,
        data_source=task.source,
        data_revision=task.revision,
        data_licence=task.licence,
        data_note=". ".join(filter(None, (task.note, OWN_ANSWERS if recipe.data.answers == "model" else ""))),
        is_benchmark=task.is_benchmark,
        seed=recipe.training.seed,
        steps=trained.steps,
        heads_alone=recipe.heads.purpose == "speed",
        kept_step=trained.kept_step if recipe.training.keep == "best" else None,
        stopped_early=trained.steps < recipe.training.steps,
        started_from=start.name,
        started_from_checkpoint=start.checkpoint,
        started_heads=start.heads,
        held_out={name: _head_result(heads_before[name], score) for name, score in heads.items()},
        held_out_n=len(heads["head_1"].nats),
        task=TaskResult(
            metric=answers.metric, value_before=answers_before.value, value=answers.value, n=answers.n
        ),
        tokens_per_second=statistics.median(speeds),
        peak_bytes=clock.peak_bytes,
        seconds=clock.seconds,
        padding_share=trained.padding_share,
        skipped_examples=skipped_examples,
        truncated_examples=truncated_examples,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "keras_mtp": __version__,
            **{name: sys.modules[name].__version__ for name in ("keras", "keras_hub", backend)},
        },
        command=("keras-mtp", "recipe", str(folder / RECIPE), "--backend", backend),
    )


def _head_result(before: "HeadScore", after: "HeadScore") -> HeadResult:
    return HeadResult(
        loss_before=before.loss, loss_after=after.loss, top1_before=before.top1, top1=after.top1
    )


def write(report: Report, folder: Path) -> None:
    """Writes `report.md` into a run's folder, and last of all `report.json`: with it the run is finished."""
    write_text(folder / MARKDOWN, markdown(report))
    write_text(folder / REPORT, json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")


def plot(rows: Sequence[curves.Row], report: Report, folder: Path) -> None:
    """Draws `curves.png` from the rows of `metrics.csv`."""
    subtitle = (
        f"recipe {report.recipe}, {report.backend}, seed {report.seed}, {report.held_out_n} held-out examples"
    )
    if report.kept_step is not None:
        subtitle += f", weights of step {report.kept_step}"
    title = f"{report.model} on {report.data}"
    curves.draw(rows, title=title, subtitle=subtitle, kept_step=report.kept_step).savefig(folder / CURVES)


def summary(report: Report) -> str:
    """The results as plain text for a terminal, at most 100 columns wide."""
    table = Table("", "before", "after", title=_title(report), title_justify="left", title_style="", box=None)
    for label, before, after in _results(report):
        table.add_row(label, before, after)
    console = Console(file=StringIO(), width=100, color_system=None)
    console.print(table)
    text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
    kept = _kept(report)
    notes = [_caution(report), kept and f"Kept: {kept}", _cost(report)]
    return "\n".join([text, "", *(textwrap.fill(note, 100) for note in notes if note)])


def markdown(report: Report) -> str:
    """The content of `report.md`."""
    caution = _caution(report)
    rows = [f"| {label} | {before} | {after} |" for label, before, after in _results(report)]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    revision = f", revision {report.data_revision}" if report.data_revision else ""
    note = f". {report.data_note}" if report.data_note else ""
    facts = {
        "Model": _model(report),
        "Data": f"{report.data}, from {report.data_source}{revision}. Licence: {report.data_licence}{note}",
        "Start": _start(report),
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
            f"![Loss over the run]({CURVES})",
            "",
            "Held-out examples are taken out of the training split and never trained on; a held-out loss is the sum of",
            "nats over all their answer tokens, divided by the number of these tokens. `head_1` predicts the next token,",
            "`head_2` the one after it, and so on. The test items were looked at only before the first and after the last",
            "training step. In brackets stands the 95 % Wilson interval: it covers the choice of test items, not that of the seed.",
            "",
            *(f"- **{name}:** {text}" for name, text in facts.items() if text),
            "",
            "To repeat the run, with the recipe as it was run beside this report:",
            "",
            f"    {shlex.join(report.command)}",
            "",
        ]
    )


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity, which a diverged run has: null instead."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _title(report: Report) -> str:
    return f"{report.model} on {report.data} ({report.backend}, seed {report.seed}, {report.steps} steps)"


def _results(report: Report) -> list[tuple[str, str, str]]:
    """Rows of (what, before, after)."""
    rows = []
    for name, head in report.held_out.items():
        rows.append(
            (f"{name}: held-out loss, nats per token", f"{head.loss_before:.4f}", f"{head.loss_after:.4f}")
        )
        rows.append((f"{name}: held-out top-1", f"{head.top1_before:.1%}", f"{head.top1:.1%}"))
    task = report.task
    if task.n:
        label = f"{task.metric.replace('_', ' ')} on {task.n} test items"
        rows.append((label, _share(task.value_before, task.n), _share(task.value, task.n)))
    first = report.held_out_n
    return [(f"{what} ({first} examples)" if "held-out" in what else what, b, a) for what, b, a in rows]


def _share(value: float, n: int) -> str:
    """A share with its 95 % Wilson score interval, which stays honest at 0 of n, where a standard error is 0."""
    z = 1.96
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return f"{value:.1%} ({max(centre - reach, 0):.1%} to {min(centre + reach, 1):.1%})"


def _caution(report: Report) -> str:
    if report.is_benchmark:
        return ""
    if report.data_source == "builtin":
        return f"The data are {report.data}. They show that training works; the score is not comparable with any published one."
    return f"The data are {report.data}, your own: the score is not comparable with any published one."


def _model(report: Report) -> str:
    revision = f", revision {report.model_revision}" if report.model_revision else ""
    sha256 = f", SHA-256 {report.model_sha256}" if report.model_sha256 else ""
    notice = f". {report.model_notice}" if report.model_notice else ""
    return f"{report.model}{revision}{sha256}. Licence: {report.model_licence}{notice}"


def _start(report: Report) -> str:
    if not report.started_from:
        return ""
    taken = "prefix and heads" if report.started_heads else "prefix"
    return (
        f"{taken} of the run {report.started_from}, trained weights {report.started_from_checkpoint[:12]}... "
        "(SHA-256). *Before* is with them."
    )


def _what(report: Report) -> str:
    return "optimizer steps of the heads alone" if report.heads_alone else "joint optimizer steps"


def _early(report: Report) -> str:
    return ", stopped early" if report.stopped_early else ""


def _kept(report: Report) -> str:
    if report.kept_step is None:
        return ""
    return (
        f"the weights of step {report.kept_step}, with which head_1's held-out loss was lowest. It chose them, so it "
        "flatters a little; the test items had no say."
    )


def _skipped(report: Report) -> str:
    truncated = f" and {report.truncated_examples} truncated" if report.truncated_examples else ""
    return (
        f"{report.skipped_examples} training examples were skipped{truncated} for their length; "
        f"{report.padding_share:.0%} of the tokens computed were padding."
    )


def _cost(report: Report) -> str:
    return (
        f"{report.seconds / 60:.1f} minutes, {report.tokens_per_second:.0f} tokens/s in training, "
        f"{report.peak_bytes / 2**30:.2f} GiB at the peak beyond the imports."
    )
