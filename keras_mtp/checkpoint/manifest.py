"""`checkpoint.json`: what a checkpoint holds and belongs to, and whether all of it is as it was written."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_origin

from keras_mtp.errors import UserError
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.untrusted import is_plain_name, open_plain

FORMAT = 2
LARGEST_MANIFEST = 1 << 20  # bytes
TRAINED, OPTIMIZER, MANIFEST = "trained.safetensors", "optimizer.safetensors", "checkpoint.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `checkpoint.json` holds, and nothing besides.

    Args:
        format: version of this layout.
        base: name of the base model. base_sha256: hash of its file.
        steps: optimizer steps of the last stage that the weights have seen.
        files: SHA-256 by file name.
        attached: which state of the trunk each head reads, by head.

    Raises:
        TypeError: a value of another type than it is declared with.
    """

    format: int
    base: str
    base_sha256: str
    steps: int
    files: dict[str, str]
    attached: dict[str, str]

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if type(value) is not (get_origin(spec.type) or spec.type):
                raise TypeError(f"`{spec.name}` is a {type(value).__name__}")

    @property
    def text(self) -> bytes:
        """The file, every byte of it: where it is another, something happened to it."""
        content = asdict(self)
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return (json.dumps(content | {"sha256": digest}, indent=2) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Reads `checkpoint.json` and checks the files it names.

    Raises:
        UserError: no checkpoint there, not one of ours, or a file that is missing or damaged.
    """
    path = folder / MANIFEST
    if not _is_plain(path):
        raise UserError(f"No finished checkpoint in {folder}. Give the folder of a run that has ended.")
    try:
        with open_plain(path) as opened:
            text = opened.read(LARGEST_MANIFEST)
        manifest = Manifest(**{key: value for key, value in json.loads(text).items() if key != "sha256"})
        is_whole = text == manifest.text
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not written by keras_mtp: {error}") from error
    if manifest.format != FORMAT:
        raise UserError(
            f"{path} has format {manifest.format}; this version of keras_mtp reads format {FORMAT}."
        )
    if not is_whole:
        raise UserError(f"{path} is damaged: its SHA-256 is not the one in it.")
    for name in sorted({TRAINED, OPTIMIZER, *manifest.files}):
        file = folder / name
        if not is_plain_name(name) or not _is_plain(file) or sha256(file) != manifest.files.get(name):
            raise UserError(f"{file} is missing or damaged: its SHA-256 is not the one in {MANIFEST}.")
    return manifest


def require_base(manifest: Manifest, base: BaseInfo, run: Path) -> None:
    """Raises a `UserError` if the checkpoint of `run` is not one of `base`."""
    if manifest.base_sha256 != base.sha256:
        raise UserError(
            f"The run in {run} belongs to another base model: {manifest.base} with SHA-256 "
            f"{manifest.base_sha256[:12]}..., not {base.name} with {base.sha256[:12]}... Load the model it was trained on."
        )


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_plain(path: Path) -> bool:
    """Whether it is a file that lies there itself; a link may lead anywhere, and a pipe never ends."""
    return path.is_file() and not path.is_symlink()
