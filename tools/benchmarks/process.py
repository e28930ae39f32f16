"""A system under test in a process of its own, which does something when told to and sleeps otherwise.

All systems of a group are alive together and take turns, so that whatever else the machine does hits them alike. A
process of its own gives each its own backend, and its own memory to measure.
"""

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Generic, Self, TypeVar

from rich.console import Console

LAST_LINES = 15
SECONDS_TO_END = 5
_SPAWN = multiprocessing.get_context("spawn")


class Process:
    """A running system, seen from outside.

    Args:
        system: what it is; it is shown as text.
        serve: what the process runs, a function of (connection, system, *arguments) at a module's top level. It sends
            "ready" once everything is loaded, and then answers requests for ever.

    Raises:
        EOFError, OSError: from every method, once the process has ended; `last_words` says why.
    """

    def __init__(self, system: Any, serve: Callable[..., None], *arguments: Any):
        self.system = system
        self.connection, child = _SPAWN.Pipe()
        self.said = tempfile.NamedTemporaryFile("r", errors="replace")  # noqa: SIM115 (`stop` closes it)
        self.process = _SPAWN.Process(
            target=_serve, args=(child, self.said.name, serve, system, *arguments), daemon=True
        )
        self.process.start()
        child.close()

    def wait_until_ready(self) -> None:
        """Until the model is loaded."""
        self.connection.recv()

    def ask(self, request: Any) -> Any:
        """Lets it do something; its answer."""
        self.connection.send(request)
        return self.connection.recv()

    def last_words(self) -> str:
        """The end of what it printed: the libraries' chatter, and at last a traceback."""
        return "".join(self.said.readlines()[-LAST_LINES:])

    def stop(self) -> None:
        """Ends the process: it finds its connection closed; one that is still busy then is killed."""
        self.connection.close()
        self.process.join(SECONDS_TO_END)
        self.process.kill()
        self.process.join()
        self.said.close()


P = TypeVar("P", bound=Process)


class Together(Generic[P]):
    """Processes that are alive together, as a context. One that fails is left behind, and the others go on.

    Args:
        workers: the processes, just started. progress: where to say what goes on.

    Attributes:
        failed: the systems that were left behind, as text.
    """

    def __init__(self, workers: Sequence[P], progress: Console):
        self.workers = list(workers)
        self.progress = progress
        self.failed: list[str] = []

    def __enter__(self) -> Self:
        for worker in list(self.workers):
            begun = time.monotonic()
            self.attempt(worker, worker.wait_until_ready)
            self.progress.print(f"{worker.system}: ready ({time.monotonic() - begun:.0f} s)")
        return self

    def __exit__(self, *error: Any) -> None:
        for worker in self.workers:
            worker.stop()

    def attempt(self, worker: P, action: Callable, *arguments: Any) -> Any:
        """What `action` gives; None if the worker's process ended."""
        try:
            return action(*arguments)
        except (EOFError, OSError):
            self.progress.print(worker.last_words(), markup=False)
            self.progress.print(f"{worker.system}: failed, as said above; the others go on")
            self.failed.append(str(worker.system))
            self.workers.remove(worker)
            worker.stop()
            return None


def _serve(connection: Connection, output: str, serve: Callable[..., None], system: Any, *arguments) -> None:
    with open(output, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # on a GPU, several share it
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    try:
        serve(connection, system, *arguments)
    except EOFError:  # nobody asks any more
        pass
    except Exception:  # whatever it is, the others are to go on
        traceback.print_exc()
