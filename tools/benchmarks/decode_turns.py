"""Who decodes beside whom, and the turns they take."""

import argparse
import time
from collections.abc import Iterator, Sequence

from rich.console import Console

from tools.benchmarks import machine
from tools.benchmarks.bandwidth import ENOUGH, ReadBandwidth
from tools.benchmarks.decode_results import WIDTHS, Measured
from tools.benchmarks.decoded import Case, System, Workload
from tools.benchmarks.decoders import MAX_LENGTH, serve
from tools.benchmarks.process import Process, Together
from tools.benchmarks.worker import OURS

PEERS = {"transformers": "torch", "llama_cpp": "llama.cpp"}  # and what they run on
Group = list[System]


def groups(options: argparse.Namespace) -> Iterator[Group]:
    """Who is alive together: what is compared with each other, a backend at a time, since large batches need memory."""
    for dtype in options.dtypes:
        for names in [options.backends] if options.quick else [[name] for name in options.backends]:
            places = [(system, name) for name in names for system in (OURS, "keras_hub")]
            yield [
                System(name=system, backend=where, dtype=dtype)
                for system, where in (*places, *PEERS.items())
                if system in options.systems
            ]


def modes_of(system: System, case: Case, ours: Sequence[str]) -> list[str]:
    """How a system decodes a case: transformers' prompt lookup takes one prompt only."""
    if system.name == OURS:
        return list(ours)
    return ["plain", "prompt_lookup"] if system.name == "transformers" and case.batch == 1 else ["plain"]


def needed_bytes(system: System, case: Case, workload: Workload) -> int:
    """Memory that a decoding needs beyond what any has: outside JAX, keras-hub makes the logits of its whole buffer."""
    if system.name != "keras_hub" or system.backend == "jax":
        return 0
    length = max(MAX_LENGTH, case.context + 1 + workload.new_tokens)
    return case.batch * length * workload.vocabulary_size * WIDTHS[system.dtype]


class Turns(Together[Process]):
    """A live group, going through all cases, and the read bandwidths between its turns.

    Args:
        number: of the group. bandwidth: measured after every turn. progress: where to say what goes on.
    """

    def __init__(
        self, number: int, group: Group, workload: Workload, bandwidth: ReadBandwidth, progress: Console
    ):
        super().__init__([Process(system, serve, workload) for system in group], progress)
        self.number, self.workload, self.bandwidth = number, workload, bandwidth
        self.ceilings: dict[tuple[int, Case], list[float]] = {}

    def measure(self, rounds: int, ours: Sequence[str]) -> list[Measured]:
        """Every case: one round to warm up, in which what is to be compiled is, then those that count."""
        return [m for case in self.workload.prompts for m in self._measure(case, rounds, ours)]

    def _measure(self, case: Case, rounds: int, ours: Sequence[str]) -> list[Measured]:
        sums = self.ceilings.setdefault((self.number, case), [])
        measured = {
            (worker, mode): Measured(self.number, worker.system, mode, case)
            for worker in self.workers
            if self._fits(worker.system, case)
            for mode in modes_of(worker.system, case, ours)
        }
        for number in range(1 + rounds):
            begun = time.monotonic()
            for (worker, mode), found in measured.items():
                if worker not in self.workers:  # it failed before
                    continue
                decoded = self.attempt(worker, worker.ask, (self.workload.prompts[case], mode))
                if decoded and number:
                    found.rounds.append(decoded)
                sums.append(self.bandwidth.measure())
            said = f"round {number} of {rounds}" if number else "warmed up"
            self.progress.print(f"{case}: {said} ({time.monotonic() - begun:.0f} s)")
        while len(sums) < ENOUGH:
            sums.append(self.bandwidth.measure())
        return list(measured.values())

    def _fits(self, system: System, case: Case) -> bool:
        available = machine.available_bytes()
        if available is None or 2 * needed_bytes(system, case, self.workload) < available:
            return True
        self.progress.print(f"{system}, {case}: left out, memory is short")
        return False
