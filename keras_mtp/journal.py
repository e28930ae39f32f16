"""Long work in pieces, each written down as soon as it is done: answers to thousands of prompts, batch by batch.

A line holds what a piece came to, and a hash over that, what it was made from, and all lines before; the first of them over what
the work is about. Work that was cut off goes on after the last line that fits; one that does not, because
it was cut short, damaged, or belongs to other work, is dropped with all that follow. Of several processes the chief reads and
writes, and all make the same pieces.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_mtp import disk, distribution


class Journal:
    """The pieces of one piece of work, in their order.

    Args:
        path: the file; its folder is made. None keeps nothing.
        about: what else the pieces depend on; lines about anything else do not fit.
    """

    def __init__(self, path: Path | None = None, about: str = ""):
        self.path = path
        self._chain = _sha256(about)
        self._group = distribution.active()
        self._lines = self._group.from_chief(self._content()).splitlines(keepends=True)
        self._place = 0

    def _content(self) -> bytes:
        is_there = self.path and self._group.is_chief and self.path.is_file()
        return self.path.read_bytes() if self.path and is_there else b""

    def piece(self, source: Any, make: Callable[[], Any]) -> Any:
        """What the next piece came to: as written down, or as `make` makes it now.

        Args:
            source: what it is made from. Both are values of JSON.
        """
        if self.path is None:
            return make()
        found, line, chain = self._read(source)
        if line is None:
            self._drop_the_rest()
            found = make()
            line, chain = self._line(source, found)
            self._append(line)
        self._chain = chain
        self._place += 1
        return found

    def _read(self, source: Any) -> tuple[Any, bytes | None, str]:
        """What is written at this place, its line, and the hash in it; no line if it does not fit."""
        if self._place < len(self._lines):
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                found = json.loads(self._lines[self._place])["piece"]
                line, chain = self._line(source, found)
                if line == self._lines[self._place]:
                    return found, line, chain
        return None, None, ""

    def _line(self, source: Any, found: Any) -> tuple[bytes, str]:
        chain = _sha256(self._chain + json.dumps([source, found]))
        return (json.dumps({"piece": found, "sha256": chain}) + "\n").encode(), chain

    def _drop_the_rest(self) -> None:
        if self._place < len(self._lines):
            self._lines = self._lines[: self._place]
            assert self.path is not None
            if self._group.is_chief:
                disk.DISK.write(self.path, b"".join(self._lines))

    def _append(self, line: bytes) -> None:
        assert self.path is not None
        self._lines.append(line)
        if not self._group.is_chief:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        disk.DISK.append(self.path, line)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
