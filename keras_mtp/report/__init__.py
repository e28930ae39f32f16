"""What a run leaves to read: `report.json` for programs, `report.md` and `curves.png` for people (page.py).

Numbers stand with the number of items behind them, a share with its 95 % interval, and data that are no benchmark are
never called one.
"""

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_mtp import __version__, curves
from keras_mtp.data.splits import places_by_source
from keras_mtp.disk import write_text
from keras_mtp.metrics import cosine_column, norm_column
from keras_mtp.report import page
from keras_mtp.run_folder import CURVES, GRADIENTS, RECIPE, REPORT, REPORT_PAGE

if TYPE_CHECKING:
    from keras_mtp.data.encoding import Encoded
    from keras_mtp.evaluation import HeadScore, TaskScore
    from keras_mtp.memory import Clock
    from keras_mtp.memory_plan import Prediction
    from keras_mtp.models.backbone import BaseInfo
    from keras_mtp.recipe import Recipe
    from keras_mtp.starting_point import StartingPoint
    from keras_mtp.tasks.task import Task
    from keras_mtp.training import Trained

OWN_ANSWERS = "The heads learnt from the answers that the model itself gave to these prompts"


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

    def to_json(self) -> dict[str, float]:
        """The entry in `report.json`."""
        return {"loss_before": self.loss_before, "loss_after": self.loss_after, "top1": self.top1}


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The task's own score on answers generated for the test split.

    Args:
        metric: its name, as "exact_match". value_before, value: mean over the items, before and at the end.
        n: number of test items. passed_over: items not asked, their prompts being too long.
        further: the means by other measures, on the same items.
    """

    metric: str
    value_before: float
    value: float
    n: int
    passed_over: int = 0
    further: "Sequence[TaskResult]" = ()

    def to_json(self) -> dict[str, Any]:
        """The entry in `report.json`; `passed_over` and `further` are in it only where there are any."""
        content: dict[str, Any] = {
            "metric": self.metric,
            "value_before": self.value_before,
            "value": self.value,
            "n": self.n,
        }
        if self.passed_over:
            content["passed_over"] = self.passed_over
        if self.further:
            content["further"] = {
                result.metric: {"value_before": result.value_before, "value": result.value}
                for result in self.further
            }
        return content


@dataclass(frozen=True, kw_only=True)
class SourceResult:
    """The held-out examples of one source of the data.

    Args:
        heads: results by head. n: number of examples.
    """

    heads: Mapping[str, HeadResult]
    n: int


@dataclass(frozen=True, kw_only=True)
class GradientResult:
    """What one head asked of the trained weights outside the heads, see `keras_mtp.probes`.

    Args:
        norm_first, norm_last: of its loss's gradient, the loss unweighted, in the first and the last step measured.
        norm: the mean of all measured. cosine: the mean cosine to head_1's; None for head_1 itself.
    """

    norm_first: float
    norm_last: float
    norm: float
    cosine: float | None = None

    def to_json(self) -> dict[str, float]:
        """The entry in `report.json`."""
        content = {"norm_first": self.norm_first, "norm_last": self.norm_last, "norm": self.norm}
        return content if self.cosine is None else content | {"cosine": self.cosine}


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run's results and what is needed to repeat it.

    Args:
        recipe: the recipe's name. backend: what Keras ran on. seed: the recipe's. steps: optimizer steps done, the
            heads' warm-up aside. heads_alone: whether only heads were trained.
        method: `tuning.method`. tuned: what that trains, in words. tuned_weights: how many weights it has, heads aside.
        kept_step: the step whose weights are the result, where the held-out examples chose it; else None: the last one's.
        continued: how often the run was cut off and went on.
        stopped_early: whether training ended before the recipe's number of steps.
        started_from: the run whose trained weights and heads were the start, "" for none. started_from_checkpoint: the SHA-256
            of its trained weights. started_heads: how many heads were that run's too.
        model: the base model's name. model_revision: the hub's commit. model_sha256: of its files. model_licence: its
            licence. model_notice: what the licence wants to be shown.
        data: the task's title, as "GSM8K" or "generated word problems (not GSM8K)". data_source: "hub", "tfds",
            "builtin" or a path. data_revision: which version of it. data_licence: their licence. data_note: how they
            were split, where the task had to decide.
        is_benchmark: False if a score on these data is no benchmark result.
        held_out: results by head. held_out_n: number of held-out examples. held_out_by_source: the same by source of the
            data, where they name any; the largest first.
        task: the task's score.
        gradients: by head, where `training.probe_every` asked for them. gradients_n: number of steps measured.
        tokens_per_second: real tokens trained on per second, the warm-up aside.
        peak_bytes: peak resident memory less that after imports. predicted: what was predicted before training; on an
            accelerator, of that one's memory.
        seconds: of the whole run. padding_share: share of padding in what training computed.
        skipped_examples: training examples left out for their length. truncated_examples: those cut to it.
        marked_examples: those left out for the text of a special token in them.
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
    method: str = "prefix"
    tuned: str = "a prefix"
    tuned_weights: int = 0
    kept_step: int | None = None
    stopped_early: bool = False
    continued: int = 0
    started_from: str = ""
    started_from_checkpoint: str = ""
    started_heads: int = 0
    held_out: Mapping[str, HeadResult]
    held_out_n: int
    held_out_by_source: Mapping[str, SourceResult] = field(default_factory=dict)
    task: TaskResult
    gradients: Mapping[str, GradientResult] = field(default_factory=dict)
    gradients_n: int = 0
    tokens_per_second: float
    peak_bytes: int
    predicted: "Prediction | None" = None
    seconds: float
    padding_share: float
    skipped_examples: int
    truncated_examples: int = 0
    marked_examples: int = 0
    date: str
    versions: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`; what a run may lack only where there is one."""
        content: dict[str, Any] = {
            "recipe": self.recipe,
            "backend": self.backend,
            "model": self.model,
            "data": self.data,
            "method": self.method,
            "tuned_weights": self.tuned_weights,
            "seed": self.seed,
            "steps": self.steps,
            "held_out": _by_head(self.held_out, self.held_out_n),
            "task": self.task.to_json(),
            "tokens_per_second": self.tokens_per_second,
            "peak_bytes": self.peak_bytes,
        }
        if self.predicted:
            content["predicted_peak_bytes"] = self.predicted.peak_bytes
        if self.held_out_by_source:
            content["held_out_by_source"] = {
                source: _by_head(result.heads, result.n) for source, result in self.held_out_by_source.items()
            }
        if self.gradients:
            heads = {name: gradient.to_json() for name, gradient in self.gradients.items()}
            content["gradients"] = {**heads, "n": self.gradients_n}
        if self.kept_step is not None:
            content["kept_step"] = self.kept_step
        if self.continued:
            content["continued"] = self.continued
        if self.started_from:
            content["started_from"] = {"run": self.started_from, "checkpoint": self.started_from_checkpoint}
        return _without_nan(content)


def _by_head(heads: Mapping[str, HeadResult], n: int) -> dict[str, Any]:
    return {**{name: head.to_json() for name, head in heads.items()}, "n": n}


def from_run(
    *,
    recipe: "Recipe",
    backend: str,
    base: "BaseInfo",
    start: "StartingPoint",
    task: "Task",
    before: "tuple[Mapping[str, HeadScore], TaskScore]",
    after: "tuple[Mapping[str, HeadScore], TaskScore]",
    held_out: "Sequence[Encoded]",
    trained: "Trained",
    tuned_weights: int,
    skipped_examples: int,
    truncated_examples: int = 0,
    marked_examples: int = 0,
    continued: int = 0,
    rows: Sequence[curves.Row],
    clock: "Clock",
    predicted: "Prediction",
    folder: Path,
) -> Report:
    """Puts a run's results together.

    Args:
        before, after: scores of every head on the held-out examples, and of the test items.
        held_out: these examples.
        tuned_weights: how many weights the recipe's method trains.
        rows: of the metrics log; the speed is the median over its steps after the warm-up.
    """
    (heads_before, answers_before), (heads, answers) = before, after
    probed = [row for row in rows if norm_column("head_1") in row]
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
        heads_alone=recipe.heads_alone,
        method=recipe.tuning.method,
        tuned=recipe.tuned,
        tuned_weights=tuned_weights,
        kept_step=trained.kept_step if recipe.training.keep == "best" else None,
        stopped_early=trained.steps < recipe.training.steps,
        continued=continued,
        started_from=start.name,
        started_from_checkpoint=start.checkpoint,
        started_heads=start.heads,
        held_out=_head_results(heads_before, heads),
        held_out_n=len(held_out),
        held_out_by_source=_source_results(heads_before, heads, held_out),
        task=_task_result(answers_before, answers),
        gradients={name: _gradient_result(name, probed) for name in heads} if probed else {},
        gradients_n=len(probed),
        tokens_per_second=statistics.median(speeds),
        peak_bytes=clock.peak_bytes,
        predicted=predicted,
        seconds=clock.seconds,
        padding_share=trained.padding_share,
        skipped_examples=skipped_examples,
        truncated_examples=truncated_examples,
        marked_examples=marked_examples,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "keras_mtp": __version__,
            **{name: sys.modules[name].__version__ for name in ("keras", "keras_hub", backend)},
        },
        command=("keras-mtp", "recipe", str(folder / RECIPE), "--backend", backend),
    )


def _head_results(
    before: "Mapping[str, HeadScore]", after: "Mapping[str, HeadScore]"
) -> dict[str, HeadResult]:
    return {
        name: HeadResult(
            loss_before=before[name].loss,
            loss_after=score.loss,
            top1_before=before[name].top1,
            top1=score.top1,
        )
        for name, score in after.items()
    }


def _gradient_result(name: str, probed: Sequence[curves.Row]) -> GradientResult:
    norms = [row[norm_column(name)] for row in probed]
    cosines = [row[cosine_column(name)] for row in probed if cosine_column(name) in row]
    return GradientResult(
        norm_first=norms[0],
        norm_last=norms[-1],
        norm=statistics.mean(norms),
        cosine=statistics.mean(cosines) if cosines else None,
    )


def _source_results(
    before: "Mapping[str, HeadScore]", after: "Mapping[str, HeadScore]", held_out: "Sequence[Encoded]"
) -> dict[str, SourceResult]:
    return {
        source: SourceResult(
            heads=_head_results(
                {name: score.part(places) for name, score in before.items()},
                {name: score.part(places) for name, score in after.items()},
            ),
            n=len(places),
        )
        for source, places in places_by_source(held_out).items()
    }


def _task_result(before: "TaskScore", after: "TaskScore") -> TaskResult:
    further = [
        TaskResult(metric=metric, value_before=before.further_values[metric], value=value, n=after.n)
        for metric, value in after.further_values.items()
    ]
    return TaskResult(
        metric=after.metric,
        value_before=before.value,
        value=after.value,
        n=after.n,
        passed_over=after.passed_over,
        further=further,
    )


def write(report: Report, folder: Path) -> None:
    """Writes `report.md` into a run's folder, and last of all `report.json`: with it the run is finished."""
    write_text(folder / REPORT_PAGE, page.markdown(report))
    write_text(folder / REPORT, json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")


def plot(rows: Sequence[curves.Row], report: Report, folder: Path) -> None:
    """Draws `curves.png`, and `gradients.png` where gradients were measured, from the rows of `metrics.csv`."""
    subtitle = (
        f"recipe {report.recipe}, {report.backend}, seed {report.seed}, {report.held_out_n} held-out examples"
    )
    if report.kept_step is not None:
        subtitle += f", weights of step {report.kept_step}"
    title = f"{report.model} on {report.data}"
    curves.draw(rows, title=title, subtitle=subtitle, kept_step=report.kept_step).savefig(folder / CURVES)
    if report.gradients:
        curves.draw_gradients(rows, title=title, subtitle=subtitle).savefig(folder / GRADIENTS)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity, which a diverged run has: null instead."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
