"""The snapshots of a run: where it goes on, and new ones, written by a thread while training goes on."""

import contextlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import keras

from keras_mtp import checkpoint, distribution, signals, snapshot
from keras_mtp.data.encoding import Encoded
from keras_mtp.disk import remove_whole
from keras_mtp.errors import UserError
from keras_mtp.evaluation import Scores
from keras_mtp.journal import Journal
from keras_mtp.memory import Clock
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe
from keras_mtp.run_folder import SNAPSHOTS
from keras_mtp.signals import Stop
from keras_mtp.snapshot import Position
from keras_mtp.snapshots.same_run import lasting, require_same, sha256


class Snapshots:
    """The snapshots of a run, and where it goes on. A context in which SIGINT and SIGTERM end the run after a snapshot.

    Args:
        folder: the run's. recipe: of the run. base: the model that is trained. clock: of the run.
        warn: called with a line about a snapshot that is damaged.

    Attributes:
        found: the newest whole snapshot, from which the run goes on; None if it begins.
        before: what the model is worth before training; to be set before that.
        continued: how often the run was cut off. stop: whether a signal came.

    Raises:
        UserError: they are of another recipe; or as `snapshot.newest`.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, base: BaseInfo, clock: Clock, warn: Callable[[str], None]
    ):
        self.folder, self.base, self.clock, self.stop = folder / SNAPSHOTS, base, clock, Stop()
        self.every, self.kept = recipe.training.snapshot_every, recipe.training.snapshots_kept
        self.found: snapshot.Snapshot | None = None
        self._damaged: set[Path] = (
            set()
        )  # newer than that, and of no use; they take the place of no whole one
        self._find(recipe, warn)
        self.before: Scores | None = self.found.before if self.found else None
        self.continued = self.found.position.continued + 1 if self.found else 0
        if self.found:
            clock.earlier, clock.earlier_peak = self.found.position.seconds, self.found.position.peak_bytes
        self.examples = ""
        self._is_chief = distribution.active().is_chief
        self._about = dict(lasting(recipe)) | {"base": base.sha256, "backend": keras.config.backend()}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._writing: Future | None = None
        self._signals = contextlib.ExitStack()

    def _find(self, recipe: Recipe, warn: Callable[[str], None]) -> None:
        """What the chief finds; the other processes read the same one, so the folder must be one that all see."""

        def chosen() -> str:
            self.found = snapshot.newest(self.folder, self.base, warn)
            if self.found is None:
                return ""
            require_same(recipe, self.folder.parent)
            found = snapshot.folders(self.folder)
            self._damaged = {*found[: found.index(self.found.folder)]}
            return self.found.folder.name

        name = distribution.by_chief(chosen)
        if name and self.found is None:
            self.found = snapshot.read(self.folder / name)

    def __enter__(self) -> "Snapshots":
        if self.every:
            self.stop = self._signals.enter_context(signals.held())
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._signals.close()
        self._writer.shutdown()  # once the last is written
        if kind is None:
            self.wait()

    def journal(self, name: str) -> Journal:
        """Of answers that the run makes, by what they are; whoever has it cut off finds them there."""
        about = json.dumps(self._about | {"answers": name}, sort_keys=True)
        return Journal(self.folder / f"{name}.jsonl" if self.every else None, about)

    @property
    def going_on(self) -> str:
        """What a person reads of it; nothing where the run begins."""
        if self.found is None:
            return ""
        at = self.found.position
        return f"was cut off: goes on after step {at.step} of the stage {at.stage}"

    @property
    def record(self) -> bytes:
        """The content of `metrics.csv` where the run goes on."""
        return self.found.record if self.found else b""

    def restore(self, model: MTPCausalLM, examples: Sequence[Encoded]) -> None:
        """Puts the trained weights of where the run goes on into its model; nothing where it begins.

        Args:
            examples: what is trained on.

        Raises:
            UserError: these are others than before.
        """
        self.examples = sha256(examples)
        if self.found is None:
            return
        if self.found.position.examples != self.examples:
            raise UserError(
                f"The run in {self.folder.parent} can go on only with the examples it was trained on. Received: others; the data "
                "or how they are read have changed since. Put them back as they were, or give the run another folder."
            )
        checkpoint.restore(self.found.folder, model, base=self.base)

    def is_due(self, step: int) -> bool:
        """Whether one is to be taken after a step."""
        return bool(self.every and (self.is_to_end() or step % self.every == 0))

    def is_to_end(self) -> bool:
        """Whether a signal came; one that any of several processes got counts for all, which must ask together."""
        self.stop.number = distribution.active().largest(self.stop.number)
        return bool(self.stop.number)

    def save(
        self,
        content: checkpoint.Content,
        record: bytes,
        *,
        stage: str,
        step: int,
        over: bool,
    ) -> None:
        """Writes one while training goes on. What went wrong with the one before is raised here.

        Args:
            content, record: see `snapshot.write`. stage, step, over: see `Position`.
        """
        self.wait()
        position = Position(
            stage=stage,
            step=step,
            over=over,
            backend=keras.config.backend(),
            examples=self.examples,
            seconds=self.clock.seconds,
            continued=self.continued,
            peak_bytes=self.clock.peak_bytes,
        )
        self._writing = self._writer.submit(self._write, content, record, position)

    def _write(self, content: checkpoint.Content, record: bytes, position: Position) -> None:
        if not content.is_finite:
            return  # nothing to go on from, as the loss of the next step will show
        assert self.before is not None, "what the model is worth before training comes first"
        snapshot.write(
            self.folder, content, base=self.base, position=position, before=self.before, record=record
        )
        self._damaged.discard(self.folder / position.name)  # which is whole now
        whole = [path for path in snapshot.folders(self.folder) if path not in self._damaged]
        for old in (*self._damaged, *whole[self.kept :]) if self._is_chief else ():
            remove_whole(old)
        self._damaged.clear()

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
            UserError: it could not be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def remove(self) -> None:
        """Removes them all, once the run is finished."""
        if distribution.active().is_chief:
            remove_whole(self.folder)
