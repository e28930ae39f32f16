"""What the decodings come to: a row per system, mode and case, its share of the ceiling, and the ratios that matter."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tools.benchmarks.decoded import Case, Decoded, System
from tools.benchmarks.worker import OURS

WIDTHS = {"float32": 4, "bfloat16": 2}  # bytes
# Every read bandwidth measured between a group's turns at a case, in bytes per second.
Ceilings = Mapping[tuple[int, Case], Sequence[float]]


@dataclass
class Measured:
    """A system in one mode and case, and its decodings round by round; the one to warm up is not among them.

    Args:
        group: a number that those have in common who took turns.
    """

    group: int
    system: System
    mode: str
    case: Case
    rounds: list[Decoded] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of decoding: the median over rounds."""
        return median(decoded.seconds for decoded in self.rounds)

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together."""
        return self.rounds[0].tokens / self.seconds

    @property
    def tokens_per_pass(self) -> float:
        """Per row."""
        return self.rounds[0].tokens / self.rounds[0].passes / self.case.batch

    def label(self) -> str:
        """Who and what, as a key of `ratios`."""
        return (
            f"{self.system.backend}/{self.system.dtype}/{self.case.batch} x {self.case.context}/{self.mode}"
        )


def usable(measured: Sequence[Measured]) -> list[Measured]:
    """Those that were timed; the difference of two noisy times can be below 0."""
    return [m for m in measured if m.rounds and m.seconds > 0]


def rows(measured: Sequence[Measured], weights: int, ceilings: Ceilings) -> list[dict[str, Any]]:
    """A JSON-ready row for each.

    `share_of_ceiling` is tokens per second, times the bytes of weights that are read per token, over the bandwidth; a pass
    reads them once for all its tokens. Keys and values, which it reads too, are not counted.

    Args:
        measured: of all groups; a system that was in several has one row per group.
        weights: that a pass reads, not counting the heads'.
    """
    return [
        {
            "system": m.system.name,
            "backend": m.system.backend,
            "dtype": m.system.dtype,
            "batch": m.case.batch,
            "context": m.case.context,
            "mode": m.mode,
            "tokens_per_second": m.tokens_per_second,
            "tokens_per_pass": m.tokens_per_pass,
            "share_of_ceiling": _bytes_per_second(m, weights) / max(ceilings[m.group, m.case]),
            "prefill_seconds": median(decoded.prefill_seconds for decoded in m.rounds),
            "group": m.group,
        }
        for m in measured
    ]


def _bytes_per_second(m: Measured, weights: int) -> float:
    bytes_per_pass = weights * WIDTHS[m.system.dtype] + m.rounds[0].extra_bytes
    bytes_per_token = bytes_per_pass / (m.tokens_per_pass * m.case.batch)
    return m.tokens_per_second * bytes_per_token


def spread(ceilings: Ceilings) -> dict[str, float]:
    """The best and the median of all bandwidths: far apart where other processes were busy, and times mean little."""
    found = [bandwidth for sums in ceilings.values() for bandwidth in sums]
    return {"best": max(found), "median": median(found)}


def ratios(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Our tokens per second over those of everything else in the same case and group; and over our own.

    "plain" is our own plain decoding, beside speculative; "context 128" is the same as this with the shortest context.
    """
    return {
        m.label(): {
            name: m.tokens_per_second / other.tokens_per_second
            for name, other in (*_peers(m, measured), *_own_plain(m, measured), *_own_shortest(m, measured))
        }
        for m in measured
        if m.system.name == OURS
    }


def agreements(measured: Sequence[Measured]) -> dict[str, int]:
    """How many leading tokens of the first row ours has in common with each of the others in the case.

    In float32 it is all of them, or those before a near tie, if systems compute the same model; a run's prefix makes
    another one of it.
    """
    return {
        f"{m.label()} and {name}": _common_start(m.rounds[0].first_row, other.rounds[0].first_row)
        for m in measured
        if m.system.name == OURS
        for name, other in (*_peers(m, measured), *_own_plain(m, measured))
    }


def _common_start(tokens: Sequence[int], others: Sequence[int]) -> int:
    same = [a == b for a, b in zip(tokens, others, strict=False)]
    return [*same, False].index(False)


def _peers(ours: Measured, measured: Sequence[Measured]) -> Iterator[tuple[str, Measured]]:
    """The others in the case and group; keras-hub on the same backend only."""
    for m in measured:
        comparable = m.system.name not in (OURS, "keras_hub") or (
            m.system.name == "keras_hub" and m.system.backend == ours.system.backend
        )
        if comparable and (m.group, m.case) == (ours.group, ours.case):
            yield f"{m.system.name} {m.mode}", m


def _own_plain(ours: Measured, measured: Sequence[Measured]) -> Iterator[tuple[str, Measured]]:
    for m in measured:
        if m.mode == "plain" != ours.mode and _same_system(m, ours) and m.case == ours.case:
            yield "plain", m


def _own_shortest(ours: Measured, measured: Sequence[Measured]) -> Iterator[tuple[str, Measured]]:
    own = [m for m in measured if _same_system(m, ours) and m.mode == ours.mode]
    own = [m for m in own if m.case.batch == ours.case.batch and m.case.context < ours.case.context]
    if own:
        shortest = min(own, key=lambda m: m.case.context)
        yield f"context {shortest.case.context}", shortest


def _same_system(one: Measured, other: Measured) -> bool:
    return (one.group, one.system) == (other.group, other.system)
