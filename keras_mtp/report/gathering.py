"""A report, put together from all that a run has at its end."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from keras_mtp import __version__, curves
from keras_mtp.data.splits import places_by_source
from keras_mtp.metrics import cosine_column, norm_column
from keras_mtp.report.report import Report
from keras_mtp.report.results import GradientResult, HeadResult, SourceResult, TaskResult
from keras_mtp.run_folder import RECIPE

if TYPE_CHECKING:
    from keras_mtp.data.encoding import Encoded
    from keras_mtp.data.splits import Splits
    from keras_mtp.evaluation import HeadScore, Scores, TaskScore
    from keras_mtp.memory import Clock
    from keras_mtp.memory_plan import Prediction
    from keras_mtp.models.backbone import BaseInfo
    from keras_mtp.recipe import Recipe
    from keras_mtp.starting_point import StartingPoint
    from keras_mtp.tasks.task import Task
    from keras_mtp.training import Trained

OWN_ANSWERS = "The heads learnt from the answers that the model itself gave to these prompts"


def from_run(
    *,
    recipe: "Recipe",
    backend: str,
    base: "BaseInfo",
    start: "StartingPoint",
    task: "Task",
    splits: "Splits",
    before: "Scores",
    after: "Scores",
    trained: "Trained",
    continued: int,
    rows: Sequence[curves.Row],
    clock: "Clock",
    predicted: "Prediction",
    folder: Path,
) -> Report:
    """Puts a run's results together.

    Args:
        splits: what was trained on, and held out. before, after: what the model was worth.
        continued: how often the run was cut off.
        rows: of the metrics log; the speed is the median over its steps after the warm-up.
    """
    (heads_before, answers_before), (heads, answers), held_out = before, after, splits.held_out
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
        tuned_weights=trained.tuned_weights,
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
        skipped_examples=len(splits.encoded.skipped),
        truncated_examples=len(splits.encoded.truncated),
        marked_examples=len(splits.encoded.marked),
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
