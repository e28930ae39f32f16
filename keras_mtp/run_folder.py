"""The folder of a run: what lies in it, that one process at a time writes there, and that files in it are whole.

    runs/a/
      recipe.toml                            the recipe as it was run
      metrics.csv                            a row per step, while the run goes on
      snapshots/                             what it needs to go on if it is cut off; while the run goes on
      diverged.json                          the batch whose loss was no number, if there was one
      checkpoint/                            what was trained; there only once training is over
      held_out.csv, answers.jsonl            every item's loss, and what was said to it
      curves.png, gradients.png, report.md   what came of it
      report.json                            written last: the run is finished
      harness/                               what lm-eval's tasks gave, where they were asked
      .lock                                  while the run goes on

No Keras here, so that a folder that cannot be used is refused before anything slow is imported.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from keras_mtp.errors import UserError

RECIPE, METRICS, CHECKPOINT, HELD_OUT, ANSWERS, REPORT = (
    "recipe.toml",
    "metrics.csv",
    "checkpoint",
    "held_out.csv",
    "answers.jsonl",
    "report.json",
)
REPORT_PAGE, CURVES, GRADIENTS, HARNESS = "report.md", "curves.png", "gradients.png", "harness"
SNAPSHOTS, DIVERGED = "snapshots", "diverged.json"
LOCK = ".lock"


def require_new(folder: Path) -> None:
    """Raises a `UserError` if a run cannot be made in `folder`: it holds a finished one, or is no folder.

    A new recipe beside an old checkpoint would be a run that never was. One that was cut off left snapshots, which
    are the last to go, and can go on.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise UserError(
            f"`--run` must be a folder that can be made. Received: {folder}, and {existing} is a file. Give another."
        )
    for name in (REPORT, CHECKPOINT) if not (folder / SNAPSHOTS).is_dir() else ():
        if (folder / name).exists():
            raise UserError(
                f"The run's folder must be a new one. Received: {folder}, which holds `{name}` already. "
                "Give another folder, or remove this one."
            )


def require_run(folder: Path, name: str = "RUN") -> Path:
    """`folder`, if a run was begun there; else a `UserError` about the argument `name`."""
    if not (folder / RECIPE).is_file():
        raise UserError(
            f"`{name}` must be the folder of a run, such as runs/gsm8k-jax-... Received: {folder}, which has no {RECIPE}."
        )
    return folder


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a run's folder and keeps other processes out of it until the block is left.

    The lock is the operating system's, so one that a killed process held is free again. The process that holds it may
    claim the folder once more inside the block. Folders that were made and in which nothing was left are removed.

    Raises:
        UserError: as `require_new`; or another process is at work in the folder.
    """
    require_new(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder):
            require_new(folder)  # once more: the other process may just have finished
            yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout  # here, since `keras-mtp --help` does not need it

    lock = FileLock(folder / LOCK, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"The run's folder is in use by another process. Received: {folder}. Wait for it, or give another folder."
        ) from None
    try:
        yield
    finally:
        if lock.lock_counter == 1:  # still held: whoever comes now makes and locks a file of his own
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
