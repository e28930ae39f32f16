"""What a study leaves to read: `study.md` and `study.json`, the curves and the differences as pictures."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from keras_mtp.curves import COLOURS
from keras_mtp.disk import write_text
from keras_mtp.recipe import from_tables
from keras_mtp.study.outcome import ArmOutcome, Outcome
from keras_mtp.study.statistics import Difference

MARKDOWN, JSON, CURVES, DIFFERENCES = "study.md", "study.json", "curves.png", "differences.png"
EQUAL = {
    "steps": "all arms were given the same number of joint steps, unless an arm's settings say otherwise; a step of an arm "
    "with heads takes longer, and their warm-up comes on top",
    "seconds": "every arm was given as many joint steps as fit into the baseline's measured training time, the heads' "
    "warm-up counted, evaluations not",
}
STYLES = ("-", "--", ":")


def write(outcome: Outcome, folder: Path) -> None:
    """Writes the four files."""
    write_text(folder / JSON, json.dumps(outcome.to_json(), indent=2, allow_nan=False) + "\n")
    _curves(outcome).savefig(folder / CURVES)
    _differences(outcome).savefig(folder / DIFFERENCES)
    write_text(folder / MARKDOWN, markdown(outcome))


def markdown(outcome: Outcome) -> str:
    """The content of `study.md`."""
    first, recipe = outcome.first, outcome.recipe
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    return "\n".join(
        [
            f"# {first.model} on {first.data}: {len(outcome.arms)} arms",
            "",
            f"**{outcome.sentence}**",
            "",
            f"Held-out loss of `head_1`, nats per answer token; before training it is {first.loss_before:.4f}.",
            "",
            *_table(
                [
                    "arm",
                    *([_short(key) for key in outcome.arms[outcome.baseline].point]),
                    "seeds",
                    *(["steps"] if outcome.equal == "seconds" else []),
                    "held-out loss",
                    "task",
                ],
                [_arm_row(name, arm, outcome.equal) for name, arm in outcome.arms.items()],
            ),
            "",
            "Differences (below 0: better than the arm it is compared with):",
            "",
            *_table(
                [
                    "arm",
                    "compared with",
                    "seeds",
                    "difference",
                    "95 % interval",
                    "p (Holm)",
                    "verdict",
                    *_mcnemar_columns(outcome),
                ],
                [_difference_row(d) for d in outcome.differences],
            ),
            "",
            f"![Differences]({DIFFERENCES})",
            "",
            f"![Held-out loss over the steps]({CURVES})",
            "",
            *_tuning(outcome),
            "Runs with the same seed see the same batches in the same order. Losses are compared item by item and seed by seed; the",
            "interval comes from a bootstrap over both, with Student's quantile for the few seeds (of one seed, over the items",
            "only); p is adjusted for the number of comparisons. The slice that chose an arm's point in the grid also compares it, a small advantage that all arms have alike.",
            "The test items decided nothing. McNemar's p, where they were answered, covers the choice of items and not that of seeds.",
            "",
            f"- **Equal:** {EQUAL[outcome.equal]}",
            f"- **Training:** {_steps(outcome)} joint steps of {recipe.training.batch_size} examples, "
            f"at most {recipe.data.max_tokens} tokens each, {_tuned(outcome)}, {recipe.training.dtype}",
            f"- **Software:** {versions}",
            "",
        ]
    )


def _tuned(outcome: Outcome) -> str:
    """What was trained besides the heads, in words; of every arm, should they differ."""
    recipes = (from_tables(arm.results[0].recipe) for arm in outcome.arms.values())
    return " or ".join(dict.fromkeys(recipe.tuned for recipe in recipes))


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _arm_row(name: str, arm: ArmOutcome, equal: str) -> list[str]:
    losses = arm.losses
    spread = f" ± {losses.std(ddof=1):.4f}" if len(losses) > 1 else ""
    score = "" if arm.score is None else f"{arm.score:.1%}"
    return [
        name,
        *(str(value) for value in arm.point.values()),
        str(len(losses)),
        *([str(arm.steps)] if equal == "seconds" else []),
        f"{losses.mean():.4f}{spread}",
        score,
    ]


def _difference_row(d: Difference) -> list[str]:
    answers = [] if d.mcnemar is None else [f"{d.right} : {d.wrong} (p {d.mcnemar:.2f})"]
    p = "" if d.seeds == 1 else f"{d.adjusted:.3f}" if d.adjusted >= 0.001 else "< 0.001"
    numbers = [f"{d.value:+.4f}", f"{d.low:+.4f} to {d.high:+.4f}", p]
    return [d.arm, d.other, str(d.seeds), *numbers, d.verdict, *answers]


def _mcnemar_columns(outcome: Outcome) -> list[str]:
    return (
        []
        if outcome.differences[0].mcnemar is None
        else ["items that it, or the other, answered right more often (McNemar)"]
    )


def _tuning(outcome: Outcome) -> list[str]:
    """Every arm's loss over the grid."""
    baseline = outcome.arms[outcome.baseline]
    points = list({json.dumps(result.point): result.point for result in baseline.tuning}.values())
    if len(points) < 2:
        return []
    head = ["arm", *(", ".join(f"{_short(key)} {value}" for key, value in point.items()) for point in points)]
    rows = []
    for name, arm in outcome.arms.items():
        means = [float(np.mean([r.loss for r in arm.tuning if r.point == point])) for point in points]
        cells = [
            f"**{mean:.4f}**" if point == arm.point else f"{mean:.4f}"
            for mean, point in zip(means, points, strict=True)
        ]
        rows.append([name, *cells])
    seeds = len({result.seed for result in baseline.tuning})
    title = f"Tuning, held-out loss over the grid ({seeds} seed{'s' * (seeds > 1)}; bold: chosen):"
    edge = (
        f"At the edge of the grid, so that a better value may lie beyond: {', '.join(outcome.at_the_edge)}."
    )
    return [title, "", *_table(head, rows), "", *([edge, ""] if outcome.at_the_edge else [])]


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _curves(outcome: Outcome) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axis = figure.subplots()
    looks = itertools.product(STYLES, COLOURS)
    for (name, arm), (style, colour) in zip(outcome.arms.items(), looks, strict=False):
        # The loss before training is the same for all, and far away. Where `training.patience` ended seeds, as far as all came.
        steps = min((result.steps for result in arm.results), key=len)[1:]
        values = np.array([result.curve[1 : 1 + len(steps)] for result in arm.results])
        label = f"{name} ({len(values)})"
        axis.plot(
            steps, values.mean(0), style, color=colour, linewidth=1.5, marker="o", markersize=3, label=label
        )
        if len(values) > 1:
            axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
    axis.set(xlabel="joint step", ylabel="held-out loss of head_1 (nats per answer token)")
    figure.suptitle(
        f"{_title(outcome)}\nmean over seeds (their number in brackets), lowest to highest",
        fontsize=11,
        parse_math=False,
    )
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def _differences(outcome: Outcome) -> Any:
    from matplotlib.figure import Figure

    shown = outcome.differences
    figure = Figure(figsize=(8, 1.6 + 0.36 * len(shown)), dpi=150, layout="constrained")
    axis = figure.subplots()
    for row, d in enumerate(shown):
        colour = {"lower": COLOURS[2], "higher": COLOURS[1]}.get(d.verdict, "grey")
        one_seed = d.seeds == 1
        axis.plot([d.low, d.high], [row, row], color=colour, linewidth=2, linestyle=":" if one_seed else "-")
        axis.plot(
            d.value, row, "o", color=colour, markersize=6, markerfacecolor="white" if one_seed else colour
        )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(
        range(len(shown)), [f"{d.arm} against {d.other} ({d.seeds})" for d in shown], parse_math=False
    )
    axis.margins(y=0.08)
    axis.invert_yaxis()
    axis.set_xlabel(
        "difference of head_1's held-out loss (nats per token)\nwith 95 % interval; left is better"
    )
    axis.grid(alpha=0.25, linewidth=0.6, axis="x")
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(
        f"{_title(outcome)}\nin brackets: seeds; grey: no difference seen; dotted: one seed, over items only",
        fontsize=11,
        parse_math=False,
    )
    return figure


def _title(outcome: Outcome) -> str:
    first = outcome.first
    return f"{first.model} on {first.data}, {_steps(outcome)} steps ({first.backend})"


def _steps(outcome: Outcome) -> str:
    """How many joint steps the arms made."""
    counts = [arm.steps for arm in outcome.arms.values()]
    if outcome.equal == "steps":
        return str(outcome.recipe.training.steps)
    return f"{min(counts)} to {max(counts)}"
