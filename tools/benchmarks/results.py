"""What the measured steps come to: a row per system, and the ratios that matter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tools.benchmarks.worker import OURS, Step, System

PEER = "peft_prompt_tuning"
Peaks = Mapping[tuple[str, str], float]  # (backend, dtype) -> FLOP/s


@dataclass
class Measured:
    """A system and its steps, round by round. Every round goes through the same examples once.

    Args:
        warmup: the round before, in which what is to be compiled was. rounds: those that count.
    """

    system: System
    warmup: list[Step] = field(default_factory=list)
    rounds: list[list[Step]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Per step: the median over rounds of a round's mean."""
        return median(sum(step.seconds for step in steps) / len(steps) for steps in self.rounds)

    @property
    def flops(self) -> float:
        """Per step, on average."""
        steps = [step for steps in self.rounds for step in steps]
        return sum(step.flops for step in steps) / len(steps)

    @property
    def padding(self) -> float:
        """Share of the tokens computed."""
        return sum(step.padding for step in self.warmup) / len(self.warmup)

    @property
    def peak_bytes(self) -> int:
        """Largest memory in any step, the first ones included."""
        return max(step.peak_bytes for steps in (self.warmup, *self.rounds) for step in steps)


def rows(measured: Sequence[Measured], peaks: Peaks) -> list[dict[str, Any]]:
    """A JSON-ready row per system. `share_of_peak` is of the machine's best matrix product in that dtype."""
    return [
        {
            "system": m.system.name,
            "backend": m.system.backend,
            "dtype": m.system.dtype,
            "heads": m.system.heads,
            "seconds": m.seconds,
            "peak_bytes": m.peak_bytes,
            "share_of_peak": m.flops / m.seconds / machine_peak(peaks, m.system.dtype),
        }
        for m in measured
    ]


def machine_peak(peaks: Peaks, dtype: str) -> float:
    """The best of all backends in a dtype."""
    return max(peak for (_, of), peak in peaks.items() if of == dtype)


def ratios(measured: Sequence[Measured]) -> dict[str, float]:
    """How many times as fast our step without heads is as PEFT's prompt tuning in the same dtype."""
    peers = {m.system.dtype: m.seconds for m in measured if m.system.name == PEER}
    return {
        f"{m.system.backend}/{m.system.dtype}": peers[m.system.dtype] / m.seconds
        for m in _ours(measured)
        if not m.system.heads and m.system.dtype in peers
    }


def head_costs(measured: Sequence[Measured]) -> dict[str, float]:
    """Time that a further head adds over its share of the flops: 1.0 where it costs what it computes.

    From the fewest to the most heads beyond `head_1`, which stepped in the same group.
    """
    found = {}
    for key in {(m.system.backend, m.system.dtype): None for m in _ours(measured)}:
        of = [m for m in _ours(measured) if (m.system.backend, m.system.dtype) == key and m.system.heads]
        few, many = (choose(of, key=lambda m: m.system.heads, default=None) for choose in (min, max))
        if few is not many:
            found["/".join(key)] = (many.seconds / few.seconds - 1) / (many.flops / few.flops - 1)
    return found


def first_loss_differences(measured: Sequence[Measured]) -> dict[str, float]:
    """Our first loss less PEFT's, in nats: same weights, start and examples, so it must be nearly 0."""
    peers = {m.system.dtype: m.warmup[0].loss for m in measured if m.system.name == PEER}
    return {
        f"{m.system.backend}/{m.system.dtype}": m.warmup[0].loss - peers[m.system.dtype]
        for m in _ours(measured)
        if not m.system.heads and m.system.dtype in peers
    }


def _ours(measured: Sequence[Measured]) -> list[Measured]:
    return [m for m in measured if m.system.name == OURS]
