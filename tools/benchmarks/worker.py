"""A system under test in a process of its own: it makes a training step when told to and sleeps otherwise.

All systems of a group are alive together and step in turn, so that whatever else the machine does hits them alike. A
process of its own gives each its own backend, and its own memory to measure.
"""

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from keras_mtp import backend, memory
from keras_mtp.data.encoding import Encoded
from keras_mtp.flops import Sizes
from tools.benchmarks import machine

LAST_LINES = 15
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True)
class System:
    """What is trained by what.

    Args:
        name: a key of `systems.SYSTEMS`. backend: one of `keras_mtp.backend.BACKENDS`.
        dtype: "float32" or "mixed_bfloat16". heads: beyond `head_1`.
    """

    name: str
    backend: str
    dtype: str
    heads: int = 0

    def __str__(self) -> str:
        return f"{self.name}, {self.backend}, {self.dtype}" + (f", heads {self.heads}" if self.heads else "")


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """The same for every system.

    Args:
        model: a model's name or path, as recipes take it. path: of its weights. sizes: of the model.
        examples: encoded training examples: so many batches, gone through again and again.
        batch_size: examples per step. prefix_ids: token ids that the prefix starts from, one per vector.
    """

    model: str
    path: Path
    sizes: Sizes
    examples: Sequence[Encoded]
    batch_size: int
    prefix_ids: Sequence[int]

    @property
    def batches(self) -> int:
        """Steps that go through the examples once."""
        return len(self.examples) // self.batch_size


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training step.

    Args:
        seconds: from being told to begin until the loss is known and the weights are updated.
        loss: nats per answer token, of `head_1`. flops: by the formula, padding included.
        padding: share of padding in the tokens computed. peak_bytes: largest memory so far.
    """

    seconds: float
    loss: float
    flops: float
    padding: float
    peak_bytes: int


class Pace:
    """The worker's side: `begin` sleeps until a step is asked for, `end` reports it."""

    def __init__(self, connection: Connection, backend_name: str):
        self.connection = connection
        self.backend = backend_name
        self.resident_bytes = 0
        self.begun: float | None = None

    def imported(self) -> None:
        """To be called once everything is imported and nothing is loaded: memory counts from here."""
        self.resident_bytes = memory.resident_bytes()

    def begin(self) -> None:
        """Before a step, what brings its data included."""
        if self.begun is None:
            machine.reset_peak()  # what loading took is another matter
            self.connection.send("ready")
        while (request := self.connection.recv()) != "step":
            self.connection.send(self._rest() if request == "rest" else machine.matmul_peak(*request))
        self.begun = time.perf_counter()

    def _rest(self) -> int:
        machine.give_back()
        return memory.resident_bytes()

    def end(self, *, loss: float, flops: float, padding: float) -> None:
        """After a step."""
        assert self.begun is not None, "a step ends that was not begun"
        self.connection.send(
            Step(
                seconds=time.perf_counter() - self.begun,
                loss=loss,
                flops=flops,
                padding=padding,
                peak_bytes=machine.peak_bytes(self.backend, self.resident_bytes),
            )
        )


class Worker:
    """The other side: a running system.

    Raises:
        EOFError, OSError: from every method, once the process has ended; `last_words` says why.
    """

    def __init__(self, system: System, workload: Workload):
        self.system = system
        self.connection, child = _SPAWN.Pipe()
        self.said = tempfile.NamedTemporaryFile("r", errors="replace")  # noqa: SIM115 (`stop` closes it)
        self.process = _SPAWN.Process(
            target=_work, args=(child, self.said.name, system, workload), daemon=True
        )
        self.process.start()
        child.close()

    def wait_until_ready(self) -> None:
        """Until the model is loaded."""
        self.connection.recv()

    def step(self) -> Step:
        """Lets it make one step."""
        self.connection.send("step")
        return self.connection.recv()

    def matmul_peak(self, shapes: Sequence[tuple[int, int, int]], dtype: str) -> float:
        """Lets it measure the peak of its backend."""
        self.connection.send((shapes, dtype))
        return self.connection.recv()

    def rest(self) -> int:
        """Lets it give back what memory its allocator kept, since others' turn comes; the bytes it still holds."""
        self.connection.send("rest")
        return self.connection.recv()

    def last_words(self) -> str:
        """The end of what it printed: the libraries' chatter, and at last a traceback."""
        return "".join(self.said.readlines()[-LAST_LINES:])

    def stop(self) -> None:
        """Ends the process; it has nothing to tidy up."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.said.close()


def _work(connection: Connection, output: str, system: System, workload: Workload) -> None:
    with open(output, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # on a GPU, several share it
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    backend.select(system.backend)
    try:
        from tools.benchmarks.systems import SYSTEMS

        SYSTEMS[system.name](system, workload, Pace(connection, system.backend))
    except Exception:  # whatever it is, the others are to go on
        traceback.print_exc()
