"""JSON Lines files, and files that are one JSON object, read strictly: UTF-8, and every mistake named with its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from keras_mtp.errors import UserError
from keras_mtp.untrusted import open_plain

LARGEST_JSON = 256 << 20  # bytes; CoQA's larger file has 49 MB
LONGEST_LINE = 16 << 20  # bytes; a book has one

OTHER_FILES = {
    b"\x1f\x8b": "a gzip file: unpack it (gunzip)",
    b"PAR1": "a Parquet file: write it as JSON Lines, in pandas with read_parquet(...).to_json(..., orient='records', lines=True)",
    b"PK\x03\x04": "a zip file: unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd file: unpack it (unzstd)",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
}


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields `(line number from 1, object)` of a JSON Lines file in UTF-8; blank lines are skipped.

    Raises:
        UserError: there is no such file, it is of another kind, or a line is not a JSON object that can be read in one
            way only (NaN, a key twice and half a surrogate pair cannot); names the file and the line.

    Example:

    ```python
    for line, row in read_jsonl("train.jsonl"):
        print(line, row["question"])
    ```
    """
    try:
        with open_plain(path) as file:
            for line, text in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
                if line == 1:
                    _refuse_other_files(text, path)
                if len(text) > LONGEST_LINE:
                    raise UserError(
                        f"A line must have at most {LONGEST_LINE >> 20} MiB. Received: {path}, line {line}, which is longer. "
                        "Write an object on each line."
                    )
                if text.strip():
                    yield line, _parse(text, f"{path}, line {line}")
    except OSError as error:
        raise UserError(
            f"The data must be a file that can be read. Received: {path} ({error.strerror}). Check the path."
        ) from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file in UTF-8 holds.

    Raises:
        UserError: as for `read_jsonl`; or the file is empty, or larger than 256 MiB.

    Example:

    ```python
    read_json("coqa-dev-v1.0.json")["version"]
    ```
    """
    try:
        with open_plain(path) as file:
            content = file.read(LARGEST_JSON + 1)
    except OSError as error:
        raise UserError(
            f"The data must be a file that can be read. Received: {path} ({error.strerror}). Check the path."
        ) from error
    if len(content) > LARGEST_JSON:
        raise UserError(
            f"A JSON file must have at most {LARGEST_JSON >> 20} MiB. Received: {path}, which is larger. Take a part of it."
        )
    if not content.strip():
        raise UserError(f"The data must be a JSON object. Received: {path}, which is empty.")
    _refuse_marks(content[:4], path, "JSON")
    return _parse(content, str(path), "The file")


def _refuse_other_files(beginning: bytes, path: str | Path) -> None:
    _refuse_marks(beginning, path, "JSON Lines")
    if beginning.strip() == b"[":
        raise UserError(
            f"The data must be JSON Lines, an object on each line. Received: {path}, line 1, which opens one JSON array. "
            "Write its items one to a line (jq -c '.[]')."
        )


def _refuse_marks(beginning: bytes, path: str | Path, wanted: str) -> None:
    for mark, kind in OTHER_FILES.items():
        if beginning.startswith(mark):
            raise UserError(f"The data must be {wanted}, a text. Received: {path}, which is {kind}.")


def _parse(text: bytes, place: str, what: str = "Every line") -> dict[str, Any]:
    """The object that a text is. `what` says in errors what should have been one."""
    try:
        decoded = text.decode("utf-8-sig").rstrip()  # else an error at the end stands on "line 2"
        row = json.loads(decoded, parse_constant=_no_number, object_pairs_hook=_every_key_once)
        if "\\u" in decoded:
            json.dumps(row, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what} must be a JSON object in UTF-8. Received: {place} ({error}). Save the file as UTF-8."
        ) from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"Every text must be valid Unicode. Received: {place}, which holds half a surrogate pair "
            f"(\\u{ord(error.object[error.start]):x}). Mend it."
        ) from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in decoded else ""
        raise UserError(
            f"{what} must be a JSON object. Received: {place}, {line}column {error.colno} ({error.msg}). Mend it."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} must be a JSON object. Received: {place} ({error}). Mend it.") from error
    if not isinstance(row, dict):
        raise UserError(
            f"{what} must be a JSON object. Received: {place}, which is a {type(row).__name__}. Mend it."
        )
    return row


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _every_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return row
