"""JSON that others wrote: read whole and bounded, its values checked as they are asked for.

Reference: RFC 8259, which leaves NaN out and duplicate names undefined; both are refused, and so is half a surrogate pair.
"""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from keras_mtp.errors import UserError
from keras_mtp.untrusted import open_plain

# As Python objects JSON takes some 20 times its bytes. An index of a few hundred shards, or a vocabulary, has less than 4 MB.
LIMIT_BYTES = 16 << 20
_DEEPEST = 64  # levels; configs have five


class Settings:
    """A JSON object. What is read is checked; what is never read can be refused by name.

    Args:
        values: the object.
        place: where it stands, for errors: "tiny/config.json".
        advice: what to do about an object that cannot be used.
    """

    def __init__(self, values: Mapping[str, Any], place: str, advice: str) -> None:
        self.values, self.place, self.advice = values, place, advice
        self._read: set[str] = set()

    def refuse(self, reason: str) -> NoReturn:
        """Raises the error for an object that cannot be used."""
        raise UserError(f"{self.place} cannot be used: {reason}. {self.advice}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key, checked to be of a type; `default` where it is missing or null."""
        self._read.add(key)
        value = self.values.get(key)
        if value is None:
            return default
        if kind is float and type(value) is int:
            value = _as_float(value)
        if type(value) is not kind:
            self.refuse(f"`{key}` must be of type {kind.__name__}, but is {value!r:.40}")
        return value

    def need(self, key: str, kind: type) -> Any:
        """Like `get`, for a key that must be there."""
        value = self.get(key, kind)
        if value is None:
            self.refuse(f"it has no `{key}`")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A count of at least 1."""
        value = self.need(key, int) if default is None else self.get(key, int, default)
        if value < 1:
            self.refuse(f"`{key}` must be at least 1, but is {value}")
        return value

    def expect(self, key: str, *wanted: Any) -> None:
        """Refuses the object if the key is there and has none of these values."""
        self._read.add(key)
        value = self.values.get(key, wanted[0])
        if value not in wanted or type(value) not in map(type, wanted):
            self.refuse(f"`{key}` must be {wanted[0]!r}, but is {value!r:.60}")

    def refuse_unread(self, harmless: Collection[str] = ()) -> None:
        """Refuses the object if it has a key that nobody asked for, unless it is null or known to be harmless."""
        for key, value in self.values.items():
            if key not in self._read and key not in harmless and value is not None:
                self.refuse(f"`{key}` = {value!r:.60} is not supported")


def read_json(path: Path, *, limit_bytes: int = LIMIT_BYTES) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        UserError: no such file, too large, not UTF-8, not JSON, not an object.
    """
    return parse_json(read_text(path, limit_bytes=limit_bytes), _place(path))


def parse_json(text: str, place: str) -> dict[str, Any]:
    """The JSON object that a text is; `place` says in errors where it stands.

    Raises:
        UserError: not JSON, not an object, or nested deeper than anything that is read here.
    """
    try:
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
        _refuse_depth(content)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place} holds half a surrogate pair, which is no text. Download it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not valid JSON: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{place} must hold a JSON object, but holds a {type(content).__name__}. Download it again."
        )
    return content


def read_text(path: Path, *, limit_bytes: int = LIMIT_BYTES) -> str:
    """Reads a file in UTF-8 of at most `limit_bytes`.

    Raises:
        UserError: no such file, no plain one, no permission, too large, not UTF-8.
    """
    try:
        with open_plain(path) as stream:
            content = stream.read(limit_bytes + 1)
    except OSError as error:
        raise UserError(
            f"{_place(path)} must be a file that can be read. Received: {error.strerror}. Check the folder."
        ) from error
    if len(content) > limit_bytes:
        raise UserError(
            f"{_place(path)} must have at most {limit_bytes:,} bytes, but is larger. Download it again."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{_place(path)} must be text in UTF-8: {error}. Download it again.") from error


def _refuse_depth(content: Any) -> None:
    """Before an error shows a value: `repr` of lists in lists goes as deep as they do, and Python's stack not as far."""
    level = [content]
    for _ in range(_DEEPEST):
        level = [
            item
            for value in level
            if isinstance(value, (dict, list))
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _place(path: Path) -> str:
    """Enough to find the file, and nothing of the machine's folders."""
    return f"{path.parent.name}/{path.name}"


def _as_float(value: int) -> float:
    """JSON's 500000 is a float where one is wanted; a thousand digits are none."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"`{key:.40}` stands there twice")
        content[key] = value
    return content
