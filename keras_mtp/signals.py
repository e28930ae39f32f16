"""SIGINT and SIGTERM while a run trains: the first is taken note of, for the run to end between two steps; a second one ends it at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """Whether the run is to end.

    Args:
        number: of the signal that came; 0 for none.
    """

    number: int = 0


@contextlib.contextmanager
def held() -> Iterator[Stop]:
    """Takes note of signals until the block is left. In a thread, where Python lets nobody handle them, none ever comes.

    Raises:
        KeyboardInterrupt, SystemExit: at the second signal.
    """
    stop = Stop()

    def take_note(number: int, _frame: object) -> None:
        if stop.number:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        stop.number = number

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, take_note) for number in NUMBERS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
