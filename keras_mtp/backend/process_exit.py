"""The end of a process among several: it may have to go without waiting for the others."""

import atexit
import os
import sys

_ends_at_once: list[bool] = []


def end_at_once() -> None:
    """From now on this process ends without waiting for those that it was started with: they may be waiting for it."""
    atexit.register(_end, 1)
    _ends_at_once.append(True)


def ended(code: int) -> None:
    """Ends the process here if it is to `end_at_once`; to be called with the exit code when all is said."""
    if _ends_at_once:
        _end(code)


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
