"""Files that are wrong on purpose, written byte by byte where no library would write them; and what refusing one looks like.

The good files that they differ from are those of `tools/fuzzing/samples.py`.
"""

import json
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from keras_mtp import cli
from tools.fuzzing import samples

Prepare = Callable[[Path], list[str]]  # fills a folder, returns the arguments of `keras-mtp`


def refused(arguments: Sequence[str], folder: Path, words: str) -> str:
    """The one line that a command ends with; nothing in `folder` has changed."""
    before = tree(folder)
    result = CliRunner().invoke(cli.cli, list(arguments), prog_name="keras-mtp")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert re.fullmatch(r"Error: [^\n]+\n", result.stderr), result.stderr
    line = result.stderr.strip()
    assert line.isprintable() and len(line) < 1000 and "Traceback" not in line
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(words, line), line
    assert tree(folder) == before
    return line


def tree(folder: Path) -> dict[str, Any]:
    """Everything in a folder: contents of files, ends of links."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.stat().st_size if path.is_file() else path.stat().st_mode
    return found


def model(path: Path) -> list[str]:
    """What judges a base model."""
    return ["evaluate", "--model", str(path), "--data", "builtin", "--limit", "1"]


# === GGUF ===

U32, TEXT, ARRAY = 4, 8, 9


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def key(name: str | bytes, kind: int = U32, value: bytes = struct.pack("<I", 7)) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(
    name: str | bytes = "x",
    shape: Sequence[int] = (32,),
    kind: int = 0,
    offset: int = 0,
    dims: int | None = None,
) -> bytes:
    count = len(shape) if dims is None else dims
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


def gguf_bytes(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
    weights: int = 256,
) -> bytes:
    """A file of these keys and tensors, with other counts than it has if so wished."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join([*keys, *tensors])
    return head + b"\0" * (-len(head) % 32 + weights)


def gguf_file(content: bytes) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        (folder / "bad.gguf").write_bytes(content)
        return model(folder / "bad.gguf")

    return prepare


def gguf_with(*, metadata: dict[str, Any] | None = None, **options: Any) -> Prepare:
    """A whole tiny Llama with other metadata or tensors."""

    def prepare(folder: Path) -> list[str]:
        from tests.tiny_gguf import write_tiny_gguf

        sizes = {"num_layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "inner": 32, "vocabulary": ["has"]}
        write_tiny_gguf(folder / "bad.gguf", **sizes, metadata=metadata, **options)
        return model(folder / "bad.gguf")

    return prepare


# === Folders ===


def folder_with(prepare_good: Callable[[Path], None], change: Callable[[Path], object]) -> Prepare:
    """A good folder of a model, `given`, with one thing changed; `outside` beside it is not part of it."""

    def prepare(folder: Path) -> list[str]:
        (folder / "given").mkdir()
        (folder / "outside").mkdir()
        prepare_good(folder / "given")
        change(folder / "given")
        return model(folder / "given")

    return prepare


def hugging_face(change: Callable[[Path], object]) -> Prepare:
    return folder_with(samples.hugging_face, change)


def preset(change: Callable[[Path], object]) -> Prepare:
    return folder_with(samples.preset, change)


def spm_preset(change: Callable[[Path], object]) -> Prepare:
    return folder_with(samples.preset_sentencepiece, change)


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Changes a JSON object in a file; what `change` returns is not looked at."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return apply


def link(name: str, target: str) -> Callable[[Path], None]:
    """Moves a file to `target`, seen from the folder, and puts a link in its place. A file that is not there is made."""

    def apply(folder: Path) -> None:
        path, end = folder / name, folder / target
        path.rename(end) if path.exists() else end.write_text("# secret\n")
        path.symlink_to(end)

    return apply


def safetensors_bytes(header: Any, weights: int = 8, *, length: int | None = None) -> bytes:
    """A file with this header (an object, or its text) and as many bytes of weights."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + b"\0" * weights


def one_tensor(**changes: Any) -> dict[str, Any]:
    """The header of a file with one tensor of two float32, changed."""
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}
