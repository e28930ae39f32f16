"""What becomes of snapshots on a disk that fails at every single operation, and of files in which bits flip or that are cut short."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from keras_mtp import checkpoint, disk, snapshot
from keras_mtp.errors import UserError
from keras_mtp.memory import Clock
from keras_mtp.models.backbone import base_info
from keras_mtp.recipe import load_recipe
from keras_mtp.snapshots import Snapshots
from tools.crashes.faulty_disk import FaultyDisk, broken, full, kill


def write_points(run: Path, work: Path) -> Iterator[bool]:
    """For every operation of a save and every fault: whether the previous or the new snapshot is there, whole, afterwards.

    Args:
        run: one that was cut off, with two snapshots. work: a folder to copy it to.
    """
    shutil.copytree(run, work / "counted")
    counting = FaultyDisk(None, kill)
    _save(work / "counted", counting)
    for fault in (kill, full, broken):
        for at in range(len(counting.done)):
            copy = work / f"{fault.__name__}-{at}"
            shutil.copytree(run, copy)
            old = _newest(copy)[0].position
            child = os.fork()
            if child == 0:
                try:
                    _save(copy, FaultyDisk(at, fault))
                except (UserError, OSError):
                    os._exit(2)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            found, warnings = _newest(copy)
            whole = found.position.step in (old.step, old.step + 1) and not warnings
            clean = fault is kill or not list((copy / "snapshots").glob("*.partial"))
            yield whole and clean and code == (-9 if fault is kill else 2)
            shutil.rmtree(copy)


def damages(run: Path, flips: int, truncations: int, seed: int) -> Iterator[tuple[str, bool]]:
    """("flip" or "truncation", whether it was found and the snapshot before was taken instead), each in the newest snapshot of a run.

    Args:
        run: one that was cut off, with two snapshots.
    """
    chance = random.Random(seed)
    newest, before = snapshot.folders(run / "snapshots")[:2]
    files = sorted(newest.iterdir())
    for kind in ["flip"] * flips + ["truncation"] * truncations:
        file = chance.choice(files)
        data = file.read_bytes()
        if kind == "flip":
            place = chance.randrange(len(data))
            flipped = bytes([data[place] ^ (1 << chance.randrange(8))])
            file.write_bytes(data[:place] + flipped + data[place + 1 :])
        else:
            file.write_bytes(data[: chance.randrange(len(data))])
        found, warnings = _newest(run)
        yield kind, found.folder == before and len(warnings) == 1 and newest.name in warnings[0]
        file.write_bytes(data)


def _save(run: Path, faulty: FaultyDisk) -> None:
    """Takes the next snapshot of a run on a disk that fails, as training does."""
    snapshots, found = _newest_of(run)
    content = checkpoint.Content(
        arrays={
            name: checkpoint.read_arrays(found.folder / name)
            for name in (checkpoint.TRAINED, checkpoint.OPTIMIZER, snapshot.BEST)
        },
        attached=checkpoint.read_manifest(found.folder).attached,
    )
    at = found.position
    disk.DISK, real = faulty, disk.DISK
    try:
        snapshots.save(content, found.record, stage=at.stage, step=at.step + 1, over=False)
        snapshots.wait()
    finally:
        disk.DISK = real


def _newest(run: Path) -> tuple[snapshot.Snapshot, list[str]]:
    warnings: list[str] = []
    _, found = _newest_of(run, warnings)
    return found, warnings


def _newest_of(run: Path, warnings: list[str] | None = None) -> tuple[Snapshots, snapshot.Snapshot]:
    recipe = load_recipe(run / "recipe.toml")
    warn = (warnings if warnings is not None else []).append
    snapshots = Snapshots(run, recipe, base_info(recipe.model.name), Clock(), warn)
    assert snapshots.found is not None
    return snapshots, snapshots.found
