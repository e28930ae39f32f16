"""What a report says in words, a sentence or two at a time; "" where there is nothing to say."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_mtp.report import Report


def by_name(report: "Report") -> dict[str, str]:
    """Everything that is needed to judge the results and to repeat them, under the name that people look for."""
    return {
        "Model": _model(report),
        "Data": _data(report),
        "Start": _start(report),
        "Trained": _tuned(report),
        "Training": f"{report.steps} {_what(report)}{_early(report)}, seed {report.seed}. {_skipped(report)}",
        "Result": kept(report),
        "Cost": cost(report),
        "Software": f"{', '.join(f'{name} {version}' for name, version in report.versions.items())}; Keras on {report.backend}",
        "Date": report.date,
    }


def caution(report: "Report") -> str:
    """What keeps the score from being compared with published ones."""
    if report.is_benchmark:
        return ""
    if report.data_source == "builtin":
        return f"The data are {report.data}. They show that training works; the score is not comparable with any published one."
    return f"The data are {report.data}: the score is not comparable with any published one."


def kept(report: "Report") -> str:
    """Which step's weights are the result, where the held-out examples chose it."""
    if report.kept_step is None:
        return ""
    return (
        f"the weights of step {report.kept_step}, with which head_1's held-out loss was lowest. It chose them, so it "
        "flatters a little; the test items had no say."
    )


def cost(report: "Report") -> str:
    """Time, speed and memory."""
    cut = f" The run was cut off and went on, {report.continued} times." if report.continued else ""
    return (
        f"{report.seconds / 60:.1f} minutes, {report.tokens_per_second:.0f} tokens/s in training, "
        f"{report.peak_bytes / 2**30:.2f} GiB at the peak beyond the imports"
        f"{_predicted(report)}.{cut}"
    )


def _model(report: "Report") -> str:
    revision = f", revision {report.model_revision}" if report.model_revision else ""
    sha256 = f", SHA-256 {report.model_sha256}" if report.model_sha256 else ""
    notice = f". {report.model_notice}" if report.model_notice else ""
    return f"{report.model}{revision}{sha256}. Licence: {report.model_licence}{notice}"


def _data(report: "Report") -> str:
    revision = f", revision {report.data_revision}" if report.data_revision else ""
    note = "".join(f". {text}" for text in (report.data_note, _passed_over(report)) if text)
    return f"{report.data}, from {report.data_source}{revision}. Licence: {report.data_licence}{note}"


def _passed_over(report: "Report") -> str:
    count = report.task.passed_over
    return (
        f"{count} test items were passed over, their prompts being too long or holding a special token's text"
        if count
        else ""
    )


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


def _skipped(report: "Report") -> str:
    truncated = f" and {report.truncated_examples} truncated" if report.truncated_examples else ""
    marked = (
        f", {report.marked_examples} skipped for holding a special token's text"
        if report.marked_examples
        else ""
    )
    return (
        f"{report.skipped_examples} training examples were skipped{truncated} for their length{marked}; "
        f"{report.padding_share:.0%} of the positions in the batches were padding."
    )


def _predicted(report: "Report") -> str:
    return (
        f" ({report.predicted.peak_bytes / 2**30:.2f} predicted before training)" if report.predicted else ""
    )
