"""A disk that stops the process, is full, or breaks: at the n-th thing that is done to it."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

from keras_mtp.disk import Disk

Fault = Callable[[Path], None]


class FaultyDisk(Disk):
    """Counts what is done to it, and lets one of them go wrong.

    A write goes wrong in its middle: half of the bytes are there. Everything else goes wrong before it is done.

    Args:
        at: the operation, counted from 0; None for none, to count them. fault: what then happens.
    """

    def __init__(self, at: int | None, fault: Fault):
        self.at, self.fault = at, fault
        self.done: list[str] = []

    def write(self, path, data):
        if self._is_next("write"):
            super().write(path, data[: len(data) // 2])
            self.fault(path)
        super().write(path, data)

    def append(self, path, data):
        if self._is_next("write"):
            super().append(path, data[: len(data) // 2])
            self.fault(path)
        super().append(path, data)

    def write_tensors(self, path, arrays):
        if self._is_next("write"):
            super().write_tensors(path, arrays)
            os.truncate(path, path.stat().st_size // 2)
            self.fault(path)
        super().write_tensors(path, arrays)

    def sync(self, path):
        self._before("sync", path)
        super().sync(path)

    def rename(self, old, new):
        self._before("rename", old)
        super().rename(old, new)

    def remove(self, path):
        self._before("remove", path)
        super().remove(path)

    def _before(self, what: str, path: Path) -> None:
        if self._is_next(what):
            self.fault(path)

    def _is_next(self, what: str) -> bool:
        self.done.append(what)
        return len(self.done) - 1 == self.at


def kill(path: Path) -> None:
    """What a power cut does to a process."""
    os.kill(os.getpid(), signal.SIGKILL)


def full(path: Path) -> None:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def broken(path: Path) -> None:
    """What a broken disk says."""
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
