"""The files that a report is written into, in a run's folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from keras_mtp import curves
from keras_mtp.disk import write_text
from keras_mtp.report import page
from keras_mtp.report.report import Report
from keras_mtp.run_folder import CURVES, GRADIENTS, REPORT, REPORT_PAGE


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
