"""Kills runs, goes on with them by the same command line, and compares with the run that nobody killed.

Each run is a fork of a process that has imported everything and computed nothing, so that hundreds can be begun. Some kills
come at a random moment once the run has begun to write, the others in the middle of something that is done to the disk.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.crashes import toy
from tools.crashes.faulty_disk import FaultyDisk, kill

PATIENCE = 1800  # seconds after which a run that does nothing is given up
OPERATIONS = 60  # on the disk, within which a kill comes: two to three snapshots
IN_A_SAVE = 0.6  # share of the kills that come at one of them

Arguments = Callable[[str, Path], list[str]]  # of a method's run in a folder


def kills(
    arguments: Arguments, methods: list[str], folder: Path, count: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Kills so many runs, and says of each that was finished in the end how often, how often in the middle of a save, and whether
    its result is identical to that of a run that nobody killed."""
    chance = random.Random(seed)
    whole = {method: uninterrupted(arguments, method, folder / f"{method}-whole") for method in methods}
    left, place = count, 0
    while left > 0:
        method = methods[place % len(methods)]
        run = folder / f"{method}-{place}"
        found = list(_killed_again_and_again(arguments(method, run), run, chance, left))
        identical = toy.result(run) == whole[method]
        yield {"method": method, "kills": len(found), "in_a_save": sum(found), "identical": identical}
        left -= len(found)
        place += 1
        if identical:
            shutil.rmtree(run)


def uninterrupted(arguments: Arguments, method: str, run: Path) -> dict[str, Any]:
    """The result of a run that nobody kills."""
    _require(_finish(arguments(method, run), run, None) == 0, run)
    return toy.result(run)


def cut_off(arguments: Arguments, method: str, run: Path, operation: int) -> None:
    """Kills a run at an operation on the disk, and leaves it so."""
    _require(_finish(arguments(method, run), run, operation) == -signal.SIGKILL, run)


def _killed_again_and_again(
    arguments: list[str], run: Path, chance: random.Random, most: int
) -> Iterator[bool]:
    """Whether each kill came in the middle of a save, until the run is finished."""
    for _ in range(most):
        at = chance.randrange(OPERATIONS) if chance.random() < IN_A_SAVE else None
        delay = None if at is not None else chance.random() ** 2 * 4.0
        code = _finish(arguments, run, at, delay)
        if code == 0:
            return
        _require(code == -signal.SIGKILL, run)
        if (run / "report.json").exists() and not (run / "snapshots").exists():
            return  # it had been finished
        yield any(run.glob("*.partial")) or any(run.glob("snapshots/*.partial"))
    _require(_finish(arguments, run, None) == 0, run)


def _finish(arguments: list[str], run: Path, at: int | None, delay: float | None = None) -> int:
    """Runs a command in a fork; its exit code, or minus the signal that killed it.

    Args:
        at: the operation on the disk at which it is killed. delay: seconds after the first line of its record was written.
    """
    run.mkdir(parents=True, exist_ok=True)
    record = run / "metrics.csv"
    before = record.stat().st_mtime_ns if record.exists() else 0
    child = os.fork()
    if child == 0:
        _become(arguments, run, at)
    begun = time.monotonic()
    due = None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if delay is not None and due is None and record.exists() and record.stat().st_mtime_ns != before:
            due = now + delay
        if (due is not None and now > due) or now - begun > PATIENCE:
            os.kill(child, signal.SIGKILL)
            due = None
        time.sleep(0.002)


def _become(arguments: list[str], run: Path, at: int | None) -> None:
    """The command line itself, with all it says in a file beside the run."""
    from keras_mtp import disk
    from keras_mtp.cli import cli

    said = os.open(run.with_name(run.name + ".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if at is not None:
        disk.DISK = FaultyDisk(at, kill)
    code = 1
    try:
        cli.main(args=list(arguments), prog_name="keras-mtp")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def _require(holds: bool, run: Path) -> None:
    if not holds:
        raise SystemExit(f"A run ended otherwise than it should have; see {run}.log.")
