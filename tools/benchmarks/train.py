"""Times training steps of SmolLM2-135M on GSM8K: ours, beside transformers with PEFT and keras-hub's own LoRA.

Systems of a group are alive together and step in turn, round by round, every round through the same examples. Seconds
are the median over rounds of the mean step of a round, data included. Memory is the largest resident memory during the
steps (on a GPU the allocator's), less that of the process with everything imported.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from keras_mtp.backend import BACKENDS
from tools.benchmarks import machine, results, workload
from tools.benchmarks.process import Together
from tools.benchmarks.results import OURS, PEER, Measured
from tools.benchmarks.screen import console
from tools.benchmarks.worker import System, Worker, Workload

DTYPES = ("float32", "mixed_bfloat16")
HEADS = (0, 1, 2, 4)
PACKAGES = ("keras", "keras-hub", "jax", "tensorflow", "torch", "transformers", "peft")
# TensorFlow keeps the memory it once took, some 7 GB here; the others give it back between their turns.
ALIVE = {"jax": 4, "tensorflow": 2, "torch": 4}
Group = list[System]
progress = console(stderr=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("--data", default="builtin", help="builtin, hub, or a folder with GSM8K's files")
    parser.add_argument("--model", default="smollm2-135m", help="a model's name or path")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: both; float32 with --quick")
    parser.add_argument(
        "--heads", nargs="+", type=int, help="heads beyond head_1; default: 0 1 2 4; 0 with --quick"
    )
    parser.add_argument("--rounds", type=int, help="default: 5; 3 with --quick")
    parser.add_argument(
        "--batches", type=int, help="of 8 examples, in every round; default: 4; 2 with --quick"
    )
    parser.add_argument("--max-tokens", type=int, default=384, help="longer examples are left out")
    parser.add_argument("--quick", action="store_true", help="prompt tuning only, in float32, fewer rounds")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")


def run(options: argparse.Namespace) -> None:
    """Measures, shows a table, and writes JSON."""
    _fill_in(options)
    _require_peers()
    prepared = workload.prepare(options)
    measured: list[Measured] = []
    peaks: dict[tuple[str, str], float] = {}
    failed: list[str] = []
    for group in groups(options):
        with _Running(group, prepared) as running:
            measured += running.measure(options.rounds, peaks)
            failed += running.failed
    if not measured:
        sys.exit("Error: no system could be measured; the reasons stand above.")
    found = _summary(measured, peaks, failed, options)
    _show(measured, peaks, found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def groups(options: argparse.Namespace) -> Iterator[Group]:
    """Who is alive together: what is compared with each other, and no more than fits into 24 GB."""
    peers = [PEER] if options.quick else [PEER, "peft_lora"]
    for dtype in options.dtypes:
        ours = options.backends if 0 in options.heads else ()
        yield [System(name=name, backend="torch", dtype=dtype) for name in peers] + [
            System(name=OURS, backend=name, dtype=dtype) for name in ours
        ]
    for name in options.backends:
        for dtype in options.dtypes:
            further = [
                System(name=OURS, backend=name, dtype=dtype, heads=heads)
                for heads in _fewest_and_most_first(options.heads)
            ]
            if not options.quick:
                further.append(System(name="keras_hub_lora", backend=name, dtype=dtype))
            for start in range(0, len(further), ALIVE[name]):
                yield further[start : start + ALIVE[name]]


def _fewest_and_most_first(heads: Sequence[int]) -> list[int]:
    """The two that tell what a further head costs step in the same group."""
    beyond = sorted(set(heads) - {0})
    return beyond[:1] + beyond[:0:-1]


class _Running(Together[Worker]):
    """A group of live workers, and what was measured of each."""

    def __init__(self, group: Group, prepared: Workload):
        super().__init__([Worker(system, prepared) for system in group], progress)
        self.prepared = prepared
        self.measured = {worker: Measured(worker.system) for worker in self.workers}

    def measure(self, rounds: int, peaks: dict[tuple[str, str], float]) -> Sequence[Measured]:
        """One round to warm up, then those that count; keeps the best matrix products in `peaks`."""
        for number in range(1 + rounds):
            for worker in list(self.workers):
                steps = self.attempt(worker, self._round, worker)
                if steps and number:
                    self.measured[worker].rounds.append(steps)
                elif steps:
                    self.measured[worker].warmup = steps
            self._measure_peaks(peaks)
            progress.print(f"round {number} of {rounds}" if number else "warmed up")
        return [self.measured[worker] for worker in self.workers]

    def _round(self, worker: Worker):
        steps = [worker.step() for _ in range(self.prepared.batches)]
        worker.rest()
        return steps

    def _measure_peaks(self, peaks: dict[tuple[str, str], float]) -> None:
        kinds = {(w.system.backend, w.system.dtype): w for w in reversed(self.workers)}
        for key, worker in kinds.items():
            dtype = "float32" if worker.system.dtype == "float32" else "bfloat16"
            peak = self.attempt(worker, worker.matmul_peak, _shapes(self.prepared), dtype)
            if peak:
                peaks[key] = max(peaks.get(key, 0.0), peak)


def _shapes(prepared: Workload) -> list[tuple[int, int, int]]:
    """The step's matrix products: (positions, in, out)."""
    sizes = prepared.sizes
    tokens = sum(len(item.ids) for item in prepared.examples) // len(prepared.examples)
    positions = prepared.batch_size * (len(prepared.prefix_ids) + tokens)
    return [
        (positions, sizes.hidden_dim, sizes.query_dim),
        (positions, sizes.hidden_dim, sizes.intermediate_dim),
        (positions, sizes.intermediate_dim, sizes.hidden_dim),
        (256, sizes.hidden_dim, sizes.vocabulary_size),
    ]


def _fill_in(options: argparse.Namespace) -> None:
    quick = options.quick
    options.dtypes = options.dtypes or (DTYPES[:1] if quick else DTYPES)
    options.heads = options.heads or ((0,) if quick else HEADS)
    options.rounds = options.rounds or (3 if quick else 5)
    options.batches = options.batches or (2 if quick else 4)


def _require_peers() -> None:
    for name in ("torch", "transformers", "peft", "accelerate"):
        if importlib.util.find_spec(name) is None:
            sys.exit(
                f"Error: the benchmark compares with transformers and PEFT, and {name} is not installed. Run: "
                "pip install --constraint tools/constraints.txt --requirement tools/benchmark-requirements.txt"
            )


def _summary(measured, peaks, failed, options) -> dict:
    return {
        "rows": results.rows(measured, peaks),
        "ratios": results.ratios(measured),
        "head_costs": results.head_costs(measured),
        "matmul_peaks": {"/".join(key): peak for key, peak in peaks.items()},
        "first_loss_differences": results.first_loss_differences(measured),
        "failed": failed,
        "machine": machine.describe(PACKAGES),
        "command": " ".join(sys.argv),
        "data": Path(options.data).name,
    }


def _show(measured: Sequence[Measured], peaks: results.Peaks, found: dict) -> None:
    table = Table(title=f"Training steps, batches of 8, {found['machine']['processor']}")
    for heading in ("system", "backend", "dtype", "heads"):
        table.add_column(heading)
    for heading in ("s/step", "vs PEFT", "peak GB", "GFLOP/s", "of own peak", "of machine's", "padding"):
        table.add_column(heading, justify="right")
    peers = {m.system.dtype: m.seconds for m in measured if m.system.name == PEER}
    for m, row in zip(measured, found["rows"], strict=True):
        system, peer, speed = m.system, peers.get(m.system.dtype), m.flops / m.seconds
        table.add_row(
            system.name,
            system.backend,
            system.dtype,
            str(system.heads),
            f"{m.seconds:.2f}",
            f"{peer / m.seconds:.2f}x" if peer else "",
            f"{m.peak_bytes / 1e9:.2f}",
            f"{speed / 1e9:.0f}",
            f"{speed / peaks[system.backend, system.dtype]:.0%}",
            f"{row['share_of_peak']:.0%}",
            f"{m.padding:.1%}",
        )
    output = console()
    output.print(table)
    for name, label, unit in (
        ("ratios", "PEFT prompt tuning's seconds over ours, no heads", "x"),
        ("head_costs", "time of one more head over its share of the flops", "x"),
        ("first_loss_differences", "our first loss less PEFT's", " nats"),
    ):
        if found[name]:
            values = ", ".join(f"{key} {value:.4g}{unit}" for key, value in found[name].items())
            output.print(f"{label}: {values}")
    peaks_text = ", ".join(f"{key} {peak / 1e9:.0f}" for key, peak in found["matmul_peaks"].items())
    output.print(f"best matrix product at the step's shapes, GFLOP/s: {peaks_text}")
