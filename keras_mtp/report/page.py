"""A report as people read it: tables.py and facts.py in the terminal, and as `report.md`."""

import shlex
import textwrap
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from keras_mtp.report import facts, tables
from keras_mtp.report.tables import Grid
from keras_mtp.run_folder import CURVES, GRADIENTS

if TYPE_CHECKING:
    from keras_mtp.report import Report


def summary(report: "Report") -> str:
    """The results as plain text for a terminal, at most 100 columns wide."""
    console = Console(file=StringIO(), width=100, color_system=None, markup=False)
    # Of the heads, the first alone fits beside the sources.
    grids = tables.results(report), tables.by_source(report, heads=1), tables.gradients(report)
    for grid in filter(None, grids):
        console.print(_table(grid), "")
    lines = console.file.getvalue().rstrip().splitlines()  # type: ignore[attr-defined]
    text = "\n".join(line.rstrip() for line in lines)
    kept = facts.kept(report)
    notes = [facts.caution(report), kept and f"Kept: {kept}", facts.cost(report)]
    return "\n".join([text, "", *(textwrap.fill(note, 100) for note in notes if note)])


def markdown(report: "Report") -> str:
    """The content of `report.md`."""
    caution, results = facts.caution(report), tables.results(report)
    by_source, gradients = tables.by_source(report), tables.gradients(report)
    return "\n".join(
        [
            f"# {results.title}",
            "",
            *([f"> **{caution}**", ""] if caution else []),
            *_rows(results),
            *(_titled(by_source) if by_source else []),
            f"![Loss over the run]({CURVES})",
            "",
            *([*_titled(gradients), f"![Gradients over the run]({GRADIENTS})", ""] if gradients else []),
            "Held-out examples are taken out of the training split and never trained on; a held-out loss is the sum of",
            "nats over all their answer tokens, divided by the number of these tokens. `head_1` predicts the next token,",
            "`head_2` the one after it, and so on. The test items were looked at only before the first and after the last",
            "training step. In brackets stands the 95 % Wilson interval: it covers the choice of test items, not that of the seed.",
            "For a score that an item can earn in part it is wider than need be.",
            "",
            *(f"- **{name}:** {text}" for name, text in facts.by_name(report).items() if text),
            "",
            "To repeat the run, with the recipe as it was run beside this report:",
            "",
            f"    {shlex.join(report.command)}",
            "",
        ]
    )


def _table(grid: Grid) -> Table:
    table = Table(*grid.columns, title=grid.title, title_justify="left", title_style="", box=None)
    for row in grid.rows:
        table.add_row(*row)
    return table


def _rows(grid: Grid) -> list[str]:
    """Markdown's lines of a table, and an empty one."""
    rows = [grid.columns, ["---"] * len(grid.columns), *grid.rows]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return [*(f"| {' | '.join(row)} |" for row in escaped), ""]


def _titled(grid: Grid) -> list[str]:
    note = f" ({grid.note})" if grid.note else ""
    return [f"{grid.title}{note}:", "", *_rows(grid)]
