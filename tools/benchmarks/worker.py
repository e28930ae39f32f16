"""A system that trains, in a process of its own: it makes a training step when told to."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from keras_mtp import backend, memory
from keras_mtp.data.encoding import Encoded
from keras_mtp.flops import Sizes
from tools.benchmarks import machine
from tools.benchmarks.process import Process

OURS = "keras_mtp"


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


class Worker(Process):
    """The other side: a running system."""

    def __init__(self, system: System, workload: Workload):
        super().__init__(system, _work, workload)

    def step(self) -> Step:
        """Lets it make one step."""
        return self.ask("step")

    def matmul_peak(self, shapes: Sequence[tuple[int, int, int]], dtype: str) -> float:
        """Lets it measure the peak of its backend."""
        return self.ask((shapes, dtype))

    def rest(self) -> int:
        """Lets it give back what memory its allocator kept, since others' turn comes; the bytes it still holds."""
        return self.ask("rest")


def _work(connection: Connection, system: System, workload: Workload) -> None:
    if system.name == OURS:
        backend.select(system.backend)
    else:  # as its users have it, without what `select` sets for this package: threads, memory, compile cache
        os.environ["KERAS_BACKEND"] = system.backend
    from tools.benchmarks.systems import SYSTEMS

    SYSTEMS[system.name](system, workload, Pace(connection, system.backend))
