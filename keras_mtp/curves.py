"""Draws a run's losses from the rows of `metrics.csv`, a panel for each thing that has a scale of its own.

    warm-up     the heads alone, training loss per step
    head_1      next-token prediction, what the run is for: held-out loss, before to after
    head_2...   the further heads in joint training, or trained alone, which leaves head_1 as it is

Steps of the warm-up and of what follows are counted apart, so the stages never share an axis.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"joint": "joint training", "heads": "heads alone"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito: told apart by everyone
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: a column over the steps at which it has a value."""

    steps: list[int]
    values: list[float]


def draw(rows: Sequence[Row], *, title: str, subtitle: str, kept_step: int | None = None) -> "Figure":
    """Makes the picture; its `savefig` writes it.

    Args:
        rows: rows of `metrics.csv`, as written or as read back (strings, "" where there is no value).
        title, subtitle: the two lines above the panels.
        kept_step: the step after the warm-up whose weights are the result; None for the last.
    """
    from matplotlib.figure import Figure  # no pyplot: that would keep global state and look for a display

    heads = _head_names(rows)
    panels = list(_panels(rows, heads))
    widths = [0.75 if stage == "warmup" else 1.0 for stage, _ in panels]
    figure = Figure(figsize=(1.2 + 4.2 * sum(widths), 4.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
    colours = dict(zip(heads, itertools.cycle(COLOURS), strict=False))
    for axis, (stage, names) in zip(axes, panels, strict=True):
        _panel(axis, rows, stage, names, kept_step, colours=colours)
    axes[0].set_ylabel("loss (nats per answer token)")
    figure.suptitle(f"{title}\n{subtitle}", fontsize=11, parse_math=False)  # a name may hold a $
    return figure


def draw_gradients(rows: Sequence[Row], *, title: str, subtitle: str) -> "Figure":
    """What a probe measured: every head's gradient norm, and its cosine to head_1's; arguments as for `draw`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2)
    for name, colour in zip(_head_names(rows), itertools.cycle(COLOURS), strict=False):
        for axis, what in zip(axes, ("norm", "cosine"), strict=True):
            found = _series(rows, "joint", f"{name}_gradient_{what}")
            if found.steps:
                axis.plot(found.steps, found.values, "o-", color=colour, markersize=4, label=name)
    axes[0].set(title="norm of the gradient of the unweighted loss", ylim=(0, None))
    axes[1].set(title="cosine to head_1's gradient", ylim=(-1.05, 1.05))
    axes[1].axhline(0, color="black", linewidth=0.8)
    for axis in axes:
        axis.set_xlabel("joint step")
        axis.title.set_fontsize(10)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines[1:] or axis is axes[0]:
            axis.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title}\n{subtitle}", fontsize=11, parse_math=False)
    return figure


def _panels(rows: Sequence[Row], heads: list[str]) -> Iterator[tuple[str, list[str]]]:
    if _has_warmup(rows):
        yield "warmup", heads[1:]
    stage = rows[-1]["stage"]
    if stage == "joint":
        yield "joint", heads[:1]
    if heads[1:]:
        yield stage, heads[1:]


def _has_warmup(rows: Sequence[Row]) -> bool:
    return any(row["stage"] == "warmup" for row in rows)


def _panel(
    axis: Any,
    rows: Sequence[Row],
    stage: str,
    names: list[str],
    kept_step: int | None,
    *,
    colours: dict[str, str],
) -> None:
    for name in names:
        _draw_head(axis, rows, stage, name, kept_step, colours[name])
    if stage == "warmup":
        axis.set(title="heads warm up (training batches)", xlabel="warm-up step", facecolor="#f4f4f4")
    else:
        which = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        start = "after warm-up" if _has_warmup(rows) else "before"
        axis.set(title=f"{TITLES[stage]}, {which}", xlabel=f"{stage} step (0: {start})")
        axis.plot([], [], color="grey", alpha=0.4, linewidth=1, label="training batch")
    axis.title.set_fontsize(10)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.margins(x=0.05, y=0.12)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="upper right")


def _draw_head(
    axis: Any, rows: Sequence[Row], stage: str, name: str, kept_step: int | None, colour: str
) -> None:
    training = _series(rows, stage, f"{name}_loss")
    if stage == "warmup":
        axis.plot(training.steps, training.values, color=colour, linewidth=1.4, label=name)
        return
    axis.plot(training.steps, training.values, color=colour, alpha=0.3, linewidth=1)
    held_out = _series(rows, stage, f"held_out_{name}_loss")
    axis.plot(held_out.steps, held_out.values, "o-", color=colour, markersize=4, label=f"{name}, held-out")
    words = ("before ", "after ") if name == "head_1" else ("", "")
    kept = -1 if kept_step is None else held_out.steps.index(kept_step)
    for index, word, side in ((0, words[0], "left"), (kept, words[1], "right")):
        _name_point(axis, held_out.steps[index], held_out.values[index], word, side, colour)


def _name_point(axis: Any, step: int, value: float, word: str, side: str, colour: str) -> None:
    from matplotlib.patheffects import withStroke

    axis.annotate(
        f"{word}{value:.3f}",
        (step, value),
        textcoords="offset points",
        xytext=(-4 if side == "left" else 4, 9),
        ha=side,
        fontsize=8,
        fontweight="bold",
        color=colour,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _head_names(rows: Sequence[Row]) -> list[str]:
    columns = {column for row in rows for column in row}
    held_out = {
        column.removeprefix("held_out_").removesuffix("_loss") for column in columns if _is_held_out(column)
    }
    return sorted(held_out, key=lambda name: int(name.removeprefix("head_")))


def _is_held_out(column: str) -> bool:
    return column.startswith("held_out_") and column.endswith("_loss")


def _series(rows: Sequence[Row], stage: str, column: str) -> Series:
    points = [
        (int(row["step"]), float(row[column]))
        for row in rows
        if row["stage"] == stage and row.get(column, "") != ""
    ]
    return Series(steps=[step for step, _ in points], values=[value for _, value in points])
