"""Reads what the devices say to each other out of the text of a compiled program (XLA's HLO)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {
    "pred": 8,
    "s8": 8,
    "u8": 8,
    "bf16": 16,
    "f16": 16,
    "s32": 32,
    "u32": 32,
    "f32": 32,
    "s64": 64,
    "f64": 64,
}
_CALL = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(r"(?:body|to_apply|calls|condition|branch_computations)=\{?%?([\w., %-]+)")


_GROUPS = re.compile(
    r"(?:replica_groups|source_target_pairs)=(?:\{\{([\d,]+)\}|\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?)"
)
# A CPU adds up bfloat16 in float32; XLA says so in the name of what adds.
_PROMOTED = re.compile(r"to_apply=%?[\w.-]*_promoted\b")


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One in a compiled program.

    Args:
        kind: one of `KINDS`. bytes: of its result on one device. in_loop: whether it is in a loop, and made in every turn.
        devices: the first of the groups of devices that talk among themselves; empty where all do.
    """

    kind: str
    bytes: int
    in_loop: bool
    devices: tuple[int, ...] = ()

    def axis(self, data: int, model: int) -> str:
        """Along which axis of a mesh: "data", "model", or "all" for both."""
        if model == 1 or data == 1:
            return "data" if model == 1 else "model"
        stride = self.devices[1] - self.devices[0] if self.devices else 0
        size = 2 if self.kind == "collective-permute" else len(self.devices)
        if stride % model == 0 and size <= data and self.devices:
            return "data"
        return "model" if 0 < abs(stride) < model and size <= model else "all"


def collectives(program: str) -> list[Collective]:
    """All of them in the text of a compiled program (HLO); a device that talks to itself alone is none."""
    bodies = dict(_computations(program))
    looped = _reached(bodies, set(re.findall(r"body=%?([\w.-]+)", program)))
    found = [
        Collective(
            kind=match[2],
            bytes=_bytes(match[1], bool(match[3])) // (2 if _PROMOTED.search(line) else 1),
            in_loop=name in looped,
            devices=_first_group(line),
        )
        for name, lines in bodies.items()
        for line in lines
        if (match := _CALL.search(line))
    ]
    return [each for each in found if len(each.devices) != 1]


def totals(found: list[Collective], data: int, model: int) -> list[dict]:
    """By kind, axis of the mesh and place: `{"kind", "axis", "in_loop", "count", "bytes"}`."""
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for each in found:
        groups.setdefault((each.kind, each.axis(data, model), each.in_loop), []).append(each.bytes)
    return [
        {"kind": kind, "axis": axis, "in_loop": in_loop, "count": len(sizes), "bytes": sum(sizes)}
        for (kind, axis, in_loop), sizes in sorted(groups.items())
    ]


def _first_group(line: str) -> tuple[int, ...]:
    found = _GROUPS.search(line)
    if not found:
        return ()
    listed, shape, dims, order = (
        [int(n) for n in filter(None, (text or "").split(","))] for text in found.groups()
    )
    if listed:
        return tuple(listed)
    ids = np.arange(np.prod(dims)).reshape(dims)
    return tuple(ids.transpose(order or range(len(dims))).reshape(shape)[0].tolist())


def _computations(program: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in program.splitlines():
        if begun := _COMPUTATION.match(line):
            name, lines = begun[1], []
        elif line == "}":
            yield name, lines
        else:
            lines.append(line)


def _reached(bodies: dict[str, list[str]], names: set[str]) -> set[str]:
    """These computations and all that they call."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        called = {
            n.strip(" %")
            for line in bodies.get(name, ())
            for m in _CALLED.findall(line)
            for n in m.split(",")
        }
        names |= (called & bodies.keys()) - found
    return found


def _bytes(shapes: str, is_start: bool) -> int:
    """Of the result; an asynchronous start gives its operands too, which come first."""
    sizes = [BITS[kind] // 8 * _product(dims) for kind, dims in _SHAPE.findall(shapes)]
    return sum(sizes[len(sizes) // 2 :] if is_start and len(sizes) > 1 else sizes)


def _product(dims: str) -> int:
    found = 1
    for size in filter(None, dims.split(",")):
        found *= int(size)
    return found
