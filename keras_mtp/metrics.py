"""The run's record: one row a step, written to `metrics.csv` as training goes."""

import csv
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_mtp.errors import UserError

Row = dict[str, Any]


class MetricsLog:
    """Appends a row per step to a CSV file and keeps the rows for the report.

    A row is held back until the next one begins, so that an evaluation after the step can still be added to it.

    Args:
        path: the CSV file; begun anew.
        head_names: `("head_1", ...)`; they decide the columns.
        further: columns beyond these, for whatever else `step` is given.
        earlier: the file as it was when the run was cut off, to be gone on with.

    Raises:
        UserError: what was earlier has other columns.

    Columns: `stage` ("warmup", "joint" or "heads"), `step` (optimizer steps of the stage so far), `seconds` since the log began,
    `tokens_per_second` (real tokens, padding aside), `<head>_loss` (nats per answer token of the step's batch),
    `held_out_<head>_loss` and `held_out_<head>_top1` where an evaluation was made. Among the further ones, where
    `training.probe_every` asks for them, `<head>_gradient_norm` and `<head>_gradient_cosine`, see `keras_mtp.probes`.
    """

    def __init__(
        self, path: Path, head_names: tuple[str, ...], further: Sequence[str] = (), earlier: bytes = b""
    ):
        self.rows: list[Row] = []
        self._pending: Row | None = None
        self.columns = [
            "stage",
            "step",
            "seconds",
            "tokens_per_second",
            *(f"{name}_loss" for name in head_names),
            *(f"held_out_{name}_{what}" for name in head_names for what in ("loss", "top1")),
            *further,
        ]
        self._path = path
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, self.columns, restval="")
        self._writer.writeheader()
        for row in _parsed(earlier, self.columns):
            self._pending = row
            self.flush()
        self._begun = time.monotonic() - (self.rows[-1]["seconds"] if self.rows else 0.0)

    def step(self, stage: str, step: int, **values: float) -> None:
        """Begins the row of a step."""
        self.flush()
        self._pending = {
            "stage": stage,
            "step": step,
            "seconds": round(time.monotonic() - self._begun, 3),
            **values,
        }

    def evaluation(self, scores: dict) -> None:
        """Adds held-out scores, `{"head_1": HeadScore, ...}`, to the row of the step just made."""
        assert self._pending is not None, "an evaluation belongs to a step: call `step` first"
        for name, score in scores.items():
            self._pending[f"held_out_{name}_loss"] = score.loss
            self._pending[f"held_out_{name}_top1"] = score.top1

    @property
    def latest(self) -> Row | None:
        """The row of the step just made."""
        return self._pending

    @property
    def loss_columns(self) -> list[str]:
        """The columns that hold a step's training losses, head by head."""
        return [c for c in self.columns if c.endswith("_loss") and not c.startswith("held_out")]

    def written(self) -> bytes:
        """The file's content so far, the row of the step just made included."""
        self.flush()
        return self._path.read_bytes()

    def flush(self) -> None:
        """Writes the row that was held back, if any."""
        if self._pending is not None:
            self.rows.append(self._pending)
            self._writer.writerow(self._pending)
            self._file.flush()
            self._pending = None

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self.flush()
        self._file.close()


def _parsed(content: bytes, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a file that a log wrote, each number the very same."""
    reader = csv.DictReader(io.StringIO(content.decode(), newline=""))
    if content and reader.fieldnames != columns:
        raise UserError(f"{reader.fieldnames} are not the columns of this run, {columns}.")
    for row in reader:
        values = {name: text for name, text in row.items() if text}
        whole, stage = int(values.pop("step")), values.pop("stage")
        yield {"stage": stage, "step": whole, **{name: float(text) for name, text in values.items()}}


def probe_columns(heads: Sequence[str]) -> list[str]:
    """All columns that a probe of these heads, head_1 first, fills."""
    return [*map(norm_column, heads), *map(cosine_column, heads[1:])]


def norm_column(head: str) -> str:
    """The column of `metrics.csv` for the norm of a head's gradient."""
    return f"{head}_gradient_norm"


def cosine_column(head: str) -> str:
    """The column of `metrics.csv` for its cosine to head_1's."""
    return f"{head}_gradient_cosine"
