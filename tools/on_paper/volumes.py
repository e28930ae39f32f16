"""What devices say to each other in a step of any size, from a few counts of small ones.

A count (`tools/collectives.py --json`) is of so many blocks and positions. What is said grows with neither (the gradient of a
prefix), with blocks (LoRA's gradients), with positions (a head's states) or with both (the trunk's states):

    volume = a + b * blocks + c * positions + d * blocks * positions

four numbers that at least four counts give, for a number of devices that share the weights. More counts are checks: all of
them must lie on the law. It does not know how many devices share a batch, so counts of several such meshes check that too.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from keras_mtp.errors import UserError

TOLERANCE = 1e-6  # of the largest count; the counts are whole numbers


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Collectives of one kind in a step, on one device.

    Args:
        kind: as XLA calls it. axis: of the mesh, "data", "model" or "all". calls: how many. bytes: of their results.
    """

    kind: str
    axis: str
    calls: float
    bytes: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a file of counts holds.

    Args:
        recipe: a recipe's name. assignments: what makes it another than its file. counts: as `tools/collectives.py` writes them.
    """

    recipe: str
    assignments: tuple[str, ...]
    counts: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file that `tools/collectives.py --json` wrote.

        Raises:
            UserError: it is none, or its counts are of several recipes.
        """
        try:
            counts = json.loads(path.read_text("utf-8"))["counts"]
            made_of = {(count["recipe"], *count["set"]) for count in counts}
            (recipe, *assignments) = made_of.pop()
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"A file of counts must be what `tools/collectives.py --json` prints. Received: {path}: {error!r:.200}"
            ) from error
        if made_of:
            raise UserError(
                f"A file's counts must be of one recipe. Received: {path}, of {1 + len(made_of)}."
            )
        return cls(recipe=recipe, assignments=tuple(assignments), counts=tuple(counts))

    @property
    def shares(self) -> list[int]:
        """How many devices share the weights, in the meshes that were counted."""
        return sorted({count["model"] for count in self.counts})

    def volumes(
        self, data: int, model: int, *, layers: int, positions: int, labelled: float, chunk_rows: int
    ) -> list[Volume]:
        """What one device of a mesh says in a step.

        Args:
            data, model: the mesh. layers: blocks of the trunk. positions: that one device of a batch computes.
            labelled: rows of the loss on it, of every head. chunk_rows: that the loss goes through at a time.

        Raises:
            UserError: nothing was counted for so many devices, or too little, or something that follows no such law.
        """
        if data * model == 1:
            return []
        counts = [count for count in self.counts if count["model"] == model]
        if data > 1:
            counts = [count for count in counts if count["data"] > 1]
        found = []
        for kind, axis, in_loop in _groups(counts):
            if axis == "data" and data == 1:
                continue
            size = {
                key: _law(counts, (kind, axis, in_loop), key) @ _columns(layers, positions)
                for key in ("count", "bytes")
            }
            counted_rows = counts[0]["chunk_rows"]
            turns = -(-labelled // chunk_rows) if in_loop else 1
            rows = labelled / counted_rows if in_loop else 1
            found.append(
                Volume(kind=kind, axis=axis, calls=size["count"] * turns, bytes=size["bytes"] * rows)
            )
        if not found:
            raise UserError(
                f"A mesh of {data} x {model} must have been counted. Received: counts of {self._meshes()}."
            )
        return found

    def _meshes(self) -> str:
        return ", ".join(sorted({f"{count['data']} x {count['model']}" for count in self.counts}))


def _groups(counts: list[dict]) -> list[tuple[str, str, bool]]:
    return sorted({_group(row) for count in counts for row in count["collectives"]})


def _group(row: dict) -> tuple[str, str, bool]:
    return row["kind"], row["axis"], row["in_loop"]


def _columns(layers: float, positions: float) -> np.ndarray:
    return np.array([1, layers, positions, layers * positions], float)


def _law(counts: list[dict], group: tuple[str, str, bool], key: str) -> np.ndarray:
    """The four numbers, for `_columns`."""
    columns = np.array([_columns(count["layers"], count["positions"]) for count in counts])
    values = np.array(
        [sum(row[key] for row in count["collectives"] if _group(row) == group) for count in counts]
    )
    scale = columns.max(0)
    if np.linalg.matrix_rank(columns / scale) < len(scale):
        raise UserError(
            "Every mesh must be counted with two numbers of blocks and two of rows at least. Received: "
            f"{sorted({(count['layers'], count['positions']) for count in counts})}."
        )
    law = np.linalg.lstsq(columns / scale, values, rcond=None)[0] / scale
    missed = np.abs(columns @ law - values).max()
    if missed > TOLERANCE * values.max():
        raise UserError(
            "Counts must grow evenly with blocks and positions, whatever the devices of a batch. Received: "
            f"{group[0]} along {group[1]}, {key} {values.tolist()}, off by {missed:.3g}."
        )
    return law
