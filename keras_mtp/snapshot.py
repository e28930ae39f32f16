"""One snapshot of a run while it trains: all that the run needs to go on to the very same result.

    snapshots/
      warmup-00000000/
      joint-00000050/           a checkpoint (checkpoint/) of the trained weights and the optimizer, and with it
        best.safetensors        with training.keep=best: weights and optimizer's state of the best evaluation so far
        before.json             what the model was worth before training
        metrics.csv             the record so far
        position.json           stage, step, and what must be the same when the run goes on
      before.jsonl, after.jsonl, own.jsonl     answers to the test items and for training, as they are made (journal.py)

Nothing else shapes what follows. The data's order is a function of (seed, stage, step), as is every schedule; no random number is
drawn while a run trains; which evaluation was best, and how long none was better, can be read off the record.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mtp import checkpoint
from keras_mtp.disk import PARTIAL, remove_tree
from keras_mtp.errors import UserError
from keras_mtp.evaluation import HeadScore, Scores, TaskScore
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.run_folder import METRICS

BEST, BEFORE, POSITION = "best.safetensors", "before.json", "position.json"
STAGES = ("warmup", "joint", "heads")  # in the order in which they come; a run has one of the last two


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run had come; what `position.json` holds, and nothing besides.

    Args:
        stage: "warmup", "joint" or "heads". step: optimizer steps of it that were made. over: whether that was all of them.
        backend: what Keras ran on. examples: SHA-256 of what is trained on.
        seconds: that the run had taken. continued: how often it had been cut off before. peak_bytes: of its memory so far.

    Raises:
        TypeError, ValueError: a value of another type than it is declared with; a stage that there is not.
    """

    stage: str
    step: int
    over: bool
    backend: str
    examples: str
    seconds: float
    continued: int
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        for spec in fields(self):
            if type(getattr(self, spec.name)) is not spec.type:
                raise TypeError(f"`{spec.name}` is a {type(getattr(self, spec.name)).__name__}")
        if self.stage not in STAGES or self.step < 0:
            raise ValueError(f"there is no step {self.step} of a stage {self.stage}")

    @property
    def name(self) -> str:
        """The snapshot's folder."""
        return f"{self.stage}-{self.step:08d}"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One that was read and found whole.

    Args:
        folder: where it lies. position: how far the run had come. before: what the model was worth before training.
        record: the content of `metrics.csv`.
    """

    folder: Path
    position: Position
    before: Scores
    record: bytes

    def best(self) -> list[np.ndarray]:
        """The remembered values of the best evaluation; none if the run remembers none."""
        if not (self.folder / BEST).exists():
            return []
        arrays = checkpoint.read_arrays(self.folder / BEST)
        return [arrays[name] for name in sorted(arrays)]


def write(
    folder: Path,
    content: checkpoint.Content,
    *,
    base: BaseInfo,
    position: Position,
    before: Scores,
    record: bytes,
) -> None:
    """Writes a snapshot into its own folder in `folder`, whole or not at all.

    Args:
        content: of a checkpoint, and in `BEST` what is remembered. base: the model that is trained. The others: see `Snapshot`.

    Raises:
        UserError: the disk does not take it.
    """
    further = {
        METRICS: record,
        BEFORE: _as_json(before),
        POSITION: (json.dumps(asdict(position), indent=2) + "\n").encode(),
    }
    checkpoint.write(folder / position.name, content, base=base, steps=position.step, further=further)


def newest(folder: Path, base: BaseInfo, warn: Callable[[str], None]) -> Snapshot | None:
    """The newest whole snapshot; None if there are none at all.

    Args:
        base: the model that is to be trained. warn: called with a line about every newer one that is damaged.

    Raises:
        UserError: none is whole; or that one is of another base model or backend.
    """
    for left in folder.glob(f"*{PARTIAL}"):  # by a process that was killed while it wrote
        remove_tree(left)
    found = folders(folder)
    for path in found:
        try:
            manifest, snapshot = _read(path)
        except UserError as error:
            warn(f"{error} Going back to the snapshot before.")
            continue
        checkpoint.require_base(manifest, base, folder.parent)
        if snapshot.position.backend != keras.config.backend():
            raise UserError(
                f"The run in {folder.parent} goes on only on {snapshot.position.backend}, where it began. Received: "
                f"{keras.config.backend()}. Give --backend {snapshot.position.backend}, or the run another folder."
            )
        return snapshot
    if found:
        raise UserError(
            f"No snapshot in {folder} is whole, so that the run cannot go on. Remove {folder.parent} to begin anew."
        )
    return None


def read(path: Path) -> Snapshot:
    """One snapshot.

    Raises:
        UserError: it is not whole.
    """
    return _read(path)[1]


def folders(folder: Path) -> list[Path]:
    """All snapshots in a folder, the newest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        stage, _, step = path.name.rpartition("-")
        if stage in STAGES and step.isdecimal():
            found.append((STAGES.index(stage), int(step), path))
    return [path for *_, path in sorted(found, reverse=True)]


def _read(path: Path) -> tuple[checkpoint.Manifest, Snapshot]:
    manifest = checkpoint.read_manifest(path)
    if missing := {METRICS, BEFORE, POSITION} - manifest.files.keys():
        raise UserError(f"{path / min(missing)} is missing.")
    try:
        return manifest, Snapshot(
            folder=path,
            position=Position(**json.loads((path / POSITION).read_bytes())),
            before=_scores(json.loads((path / BEFORE).read_bytes())),
            record=(path / METRICS).read_bytes(),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not written by keras_mtp: {error}") from error


def _as_json(scores: Scores) -> bytes:
    heads, answers = scores
    arrays = {
        name: {key: value.tolist() for key, value in vars(score).items()} for name, score in heads.items()
    }
    return json.dumps({"heads": arrays, "task": asdict(answers)}).encode()


def _scores(content: Mapping[str, Any]) -> Scores:
    heads = {
        name: HeadScore(**{key: np.asarray(values) for key, values in score.items()})
        for name, score in content["heads"].items()
    }
    task = content["task"]
    lists = {key: tuple(task[key]) for key in ("scores", "completions")}
    further = {metric: tuple(scores) for metric, scores in task["further"].items()}
    return Scores(heads, TaskScore(**{**task, **lists, "further": further}))
