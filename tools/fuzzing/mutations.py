"""Ways to damage a file: blindly, by its tokens, by its JSON, by the places where a format keeps its numbers.

Every function takes a NumPy generator first, so that the same seed makes the same file.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

Generator = np.random.Generator
EDGES = (
    0,
    1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**53,
    2**62,
)
EDGES = (*EDGES, 2**63 - 1, 2**63, 2**64 - 1)
BYTES = (
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\n",
    b"\r\n",
    b'"',
    b"\\",
    b"../../etc/passwd",
    b"{",
    b"[" * 300,
)
# What JSON may hold in a value's place; written as they stand.
VALUES = (
    *("null", "true", "false", "0", "-1", "1", "1.5", "-0.0", "1e999", "1e-999", "NaN", "-Infinity", '""', '"x"', '"\\ud800"'),
    *("[]", "{}", "[[]]", '{"a": 1}', "[null]", "9" * 30, "9" * 5000, '"\\u0000"', '"../../etc/passwd"', '"/dev/zero"'),
    *("4294967296", "18446744073709551615", "9223372036854775808", "[" * 60 + "]" * 60, "[" * 400 + "]" * 400, "[" * 2000 + "]" * 2000),
    *('"' + "x" * 5000 + '"', '"\\u001b[2J"', "[1, 2]", '["x", "y"]', "1e308", "2147483648", '{"type": "x"}'),
)  # fmt: skip
TOKENS = re.compile(r"\w+|\s+|[^\w\s]")
WORDS = (
    *("", " ", "\n", "\t", "\0", "'", '"', '"""', "{", "}", "[", "]", "(", ")", "=", ".", "..", "-1", "0", "1e400", "inf", "nan"),
    *("true", "none", "9" * 5000, "[" * 500, "{" * 500, "x" * 3000, "\u2028", "\ufeff", "---", "#", "{{", "}}", "{%", "%}", "|"),
    *("range(99999)", "loop", "self", "__class__", "namespace", "* 10**9", "| join", "for x in", "endfor", "\\", "\r"),
)  # fmt: skip


def damaged(rng: Generator, content: bytes, others: Sequence[bytes]) -> bytes:
    """One to four blind changes: bits, bytes, numbers, cuts, repetitions, parts of another file."""
    made = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        made = _CHANGES[rng.integers(len(_CHANGES))](rng, made, others)
    return bytes(made)


def with_number(rng: Generator, content: bytes, fields: Sequence[tuple[int, int]]) -> bytes:
    """One to three of a format's own numbers, given as (place, bytes), at the edge of what they can be."""
    made = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place, size = fields[rng.integers(len(fields))]
        made[place : place + size] = _edge(rng, size, len(content))
    return bytes(made)


def other_text(rng: Generator, text: str) -> str:
    """One to four tokens replaced, left out, doubled or moved."""
    tokens = TOKENS.findall(text) or [""]
    for _ in range(rng.integers(1, 5)):
        place, other = rng.integers(len(tokens), size=2)
        choice = rng.integers(5)
        if choice == 0:
            tokens[place] = str(rng.choice(WORDS))
        elif choice == 1:
            tokens[place] = ""
        elif choice == 2:
            tokens[place] *= int(rng.integers(2, 50))
        elif choice == 3:
            tokens[place], tokens[other] = tokens[other], tokens[place]
        else:
            tokens[place] += str(rng.choice(WORDS)) + tokens[other]
    return "".join(tokens)


def other_json(rng: Generator, text: str) -> str:
    """One to three values of a JSON text replaced, left out, renamed, moved or wrapped; sometimes a key twice."""
    root, raw = [json.loads(text)], {}
    for number in range(rng.integers(1, 4)):
        holder, key = _place(rng, root)
        choice = rng.integers(7)
        if choice <= 2:
            raw[f"@{number}@"] = VALUES[rng.integers(len(VALUES))]
            holder[key] = f"@{number}@"
        elif choice == 3 and holder is not root:
            del holder[key]
        elif choice == 4 and isinstance(holder, dict):
            holder[str(rng.choice(WORDS))] = holder.pop(key)
        elif choice == 5:
            holder[key] = [holder[key]]
        else:
            other, its_key = _place(rng, root)
            holder[key] = json.loads(json.dumps(other[its_key]))
    made = json.dumps(root[0])
    for mark, value in raw.items():
        made = made.replace(f'"{mark}"', value)
    if rng.integers(10) == 0:
        made = re.sub(r'("\w+": [^,{}\[\]]+),', r"\1, \1,", made, count=1)
    return made


def _place(rng: Generator, root: list[Any]) -> tuple[Any, Any]:
    """A random place in nested lists and dicts, as what holds it and under which key."""
    holder, key = root, 0
    while isinstance(holder[key], (dict, list)) and holder[key] and rng.integers(4):
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[rng.integers(len(keys))]
    return holder, key


def _edge(rng: Generator, size: int, length: int) -> bytes:
    """A whole number that is often the wrong one, little-endian."""
    value = (*EDGES, length, length - 1, length + 1)[rng.integers(len(EDGES) + 3)]
    return (value % (1 << 8 * size)).to_bytes(size, "little")


def _span(rng: Generator, content: bytes | bytearray) -> slice:
    start = int(rng.integers(len(content) + 1))
    return slice(start, start + int(rng.integers(1, 1 << rng.integers(1, 12))))


def _bits(rng: Generator, content: bytearray, others: Sequence[bytes]) -> bytearray:
    for place in rng.integers(len(content), size=rng.integers(1, 9)) if content else ():
        content[place] ^= 1 << int(rng.integers(8))
    return content


def _number(rng: Generator, content: bytearray, others: Sequence[bytes]) -> bytearray:
    size = 1 << int(rng.integers(4))
    place = int(rng.integers(len(content) + 1))
    content[place : place + size] = _edge(rng, size, len(content))
    return content


def _cut(rng: Generator, content: bytearray, others: Sequence[bytes]) -> bytearray:
    return content[: rng.integers(len(content) + 1)]


def _without(rng: Generator, content: bytearray, others: Sequence[bytes]) -> bytearray:
    del content[_span(rng, content)]
    return content


def _doubled(rng: Generator, content: bytearray, others: Sequence[bytes]) -> bytearray:
    span = _span(rng, content)
    content[span.start : span.start] = content[span] * int(rng.integers(1, 4))
    return content


def _inserted(rng: Generator, content: bytearray, others: Sequence[bytes]) -> bytearray:
    place = int(rng.integers(len(content) + 1))
    content[place:place] = BYTES[rng.integers(len(BYTES))]
    return content


def _spliced(rng: Generator, content: bytearray, others: Sequence[bytes]) -> bytearray:
    other = others[rng.integers(len(others))]
    return content[: rng.integers(len(content) + 1)] + other[rng.integers(len(other) + 1) :]


_CHANGES = (_bits, _bits, _number, _number, _cut, _without, _doubled, _inserted, _spliced)
