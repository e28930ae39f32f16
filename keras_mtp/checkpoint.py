"""What was trained, in one folder: safetensors and JSON, written whole or not at all, checked when read.

    checkpoint/
      trained.safetensors     prefix, LoRA or the whole trunk, as the run's method says, and the heads, by names that no
                              backend decides; and the token ids that drafts are chosen among
      optimizer.safetensors   the optimizer of the last stage
      checkpoint.json         format, base model and its hash, steps done, SHA-256 of every other file and of its own text

The base model is not in it, only its name and hash: megabytes, not gigabytes, unless all of it was trained. Weights are neutral: a checkpoint written
on one backend is read on the others. A snapshot (snapshots.py) is a checkpoint with further files, for training to go on from.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from keras_mtp import disk, distribution
from keras_mtp.errors import UserError
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.models.tuned_weights import OWNERS, named, tuned_variables
from keras_mtp.untrusted import is_plain_name, open_plain

if TYPE_CHECKING:
    import keras

    from keras_mtp.models.mtp_causal_lm import MTPCausalLM

FORMAT = 2
LARGEST_MANIFEST = 1 << 20  # bytes
TRAINED, OPTIMIZER, MANIFEST = "trained.safetensors", "optimizer.safetensors", "checkpoint.json"
DRAFTS = "draft_vocabulary"  # its name in TRAINED


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """A checkpoint in memory: copies, so that training may go on while they are written.

    Args:
        arrays: by file name and tensor name. attached: see `Manifest`.
    """

    arrays: dict[str, dict[str, np.ndarray]]
    attached: dict[str, str]

    @property
    def is_finite(self) -> bool:
        """Whether every number in it is one."""
        return all(np.isfinite(a).all() for file in self.arrays.values() for a in file.values())


def content(model: "MTPCausalLM", optimizer_variables: Iterable["keras.Variable"]) -> Content:
    """A copy of what a model's training has made so far: what its method trains, its heads, the optimizer's state."""
    return Content(
        arrays={
            TRAINED: copies(trained_variables(model)) | _draft_vocabulary(model),
            OPTIMIZER: copies(numbered(optimizer_variables)),
        },
        attached=_attached(model),
    )


def save(
    folder: Path,
    model: "MTPCausalLM",
    optimizer_variables: Iterable["keras.Variable"],
    *,
    base: BaseInfo,
    steps: int,
) -> None:
    """Writes a checkpoint beside `folder` and renames it into place.

    Args:
        model: its heads are kept, and what its method trains.
        optimizer_variables: state of the last stage's optimizer.
        base: the model that was fine-tuned. steps: optimizer steps of that stage that the weights have seen.

    Raises:
        UserError: the files cannot be written. Nothing of them is left then.
    """
    write(folder, content(model, optimizer_variables), base=base, steps=steps)


def write(
    folder: Path, what: Content, *, base: BaseInfo, steps: int, further: Mapping[str, bytes] | None = None
) -> None:
    """As `save`, from a copy, and without Keras, so that it may be done beside the training. Only the chief writes.

    Args:
        further: more files, by name, each with its hash in the manifest.
    """
    if not distribution.active().is_chief:
        return
    with disk.whole_folder(folder) as new:
        for name, arrays in what.arrays.items():
            disk.DISK.write_tensors(new / name, arrays)
        for name, data in (further or {}).items():
            disk.DISK.write(new / name, data)
        manifest = Manifest(
            format=FORMAT,
            base=base.name,
            base_sha256=base.sha256,
            steps=steps,
            files={path.name: _sha256(path) for path in sorted(new.iterdir())},
            attached=what.attached,
        )
        disk.DISK.write(new / MANIFEST, manifest.text)


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
        if not is_plain_name(name) or not _is_plain(file) or _sha256(file) != manifest.files.get(name):
            raise UserError(f"{file} is missing or damaged: its SHA-256 is not the one in {MANIFEST}.")
    return manifest


def require_base(manifest: Manifest, base: BaseInfo, run: Path) -> None:
    """Raises a `UserError` if the checkpoint of `run` is not one of `base`."""
    if manifest.base_sha256 != base.sha256:
        raise UserError(
            f"The run in {run} belongs to another base model: {manifest.base} with SHA-256 "
            f"{manifest.base_sha256[:12]}..., not {base.name} with {base.sha256[:12]}... Load the model it was trained on."
        )


def restore(folder: Path, model: "MTPCausalLM", *, base: BaseInfo, heads: int | None = None) -> Manifest:
    """Puts a checkpoint's weights into a model built from the same recipe.

    Args:
        model: gets the weights. base: what it was built around.
        heads: take so many of the checkpoint's heads, the nearest; the model's others stay as they are, and so does its
            draft vocabulary. None for all.

    Raises:
        UserError: as `read_manifest`; another base model; tensors missing, surplus or of another shape; heads that read
            another state of the trunk than they were trained on.
    """
    manifest = read_manifest(folder)
    require_base(manifest, base, folder.parent)
    arrays = read_arrays(folder / TRAINED)
    variables = trained_variables(model)
    drafts = arrays.pop(DRAFTS, np.zeros(0, "int32"))
    if heads is not None:
        taken = {*OWNERS, *model.head_names[1 : 1 + heads]}
        arrays = {n: a for n, a in arrays.items() if n.partition("/")[0] in taken}
        variables = {n: v for n, v in variables.items() if n.partition("/")[0] in taken}
    wrong = sorted(arrays.keys() ^ variables.keys())
    wrong += [
        n for n in sorted(arrays.keys() & variables.keys()) if arrays[n].shape != tuple(variables[n].shape)
    ]
    if wrong:
        raise UserError(
            f"{folder / TRAINED} does not fit the run's recipe: tensor {wrong[0]} (of {len(wrong)})."
        )
    _require_attached(manifest, model, folder, heads)
    if drafts.ndim != 1 or drafts.dtype != "int32" or not _are_tokens(drafts, model):
        raise UserError(
            f"{folder / TRAINED} does not fit the run's recipe: tensor {DRAFTS} holds no token ids."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
    if heads is None:
        model.draft_vocabulary = drafts.tolist()
    return manifest


def _attached(model: "MTPCausalLM") -> dict[str, str]:
    return {name: head.reads for name, head in zip(model.head_names[1:], model.heads, strict=True)}


def _require_attached(manifest: Manifest, model: "MTPCausalLM", folder: Path, heads: int | None) -> None:
    """Raises a `UserError` if one of the first `heads` heads reads another state than the checkpoint's; their tensors look alike."""
    for name, reads in list(_attached(model).items())[:heads]:
        trained_on = manifest.attached.get(name)
        if reads != trained_on:
            raise UserError(
                f"`heads.attach` must be {trained_on}, where {name} in {folder} was trained. Received: {reads}."
            )


def _are_tokens(ids: np.ndarray, model: "MTPCausalLM") -> bool:
    return bool(((ids >= 0) & (ids < model.backbone.vocabulary_size)).all())


def trained_variables(model: "MTPCausalLM") -> dict[str, "keras.Variable"]:
    """The variables that belong into a checkpoint, by names of our own: what the method trains, and the heads."""
    variables = tuned_variables(model)
    for name, head in zip(model.head_names[1:], model.heads, strict=True):
        variables |= named(name, head)
    return variables


def put(path: Path, variables: Sequence["keras.Variable"]) -> None:
    """Puts the arrays of a file of numbered tensors into variables, in their order.

    Raises:
        UserError: the file cannot be read, or holds other tensors.
    """
    arrays, wanted = read_arrays(path), numbered(variables)
    wrong = sorted(arrays.keys() ^ wanted.keys())
    wrong += [n for n, v in wanted.items() if n in arrays and arrays[n].shape != tuple(v.shape)]
    if wrong:
        raise UserError(f"{path} does not fit the run's recipe: tensor {wrong[0]} (of {len(wrong)}).")
    for name, variable in wanted.items():
        variable.assign(arrays[name])


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, by name; a `UserError` if it is none of safetensors."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def numbered(items: Iterable[Any]) -> dict[str, Any]:
    """What has only an order, by names that sort that way."""
    return {f"{i:06d}": item for i, item in enumerate(items)}


def copies(variables: Mapping[str, "keras.Variable"]) -> dict[str, np.ndarray]:
    """Copies of variables' values: the backends train on in the memory that `whole` shows."""
    whole = distribution.active().whole
    return {name: np.array(whole(v.value), order="C") for name, v in variables.items()}


def _draft_vocabulary(model: "MTPCausalLM") -> dict[str, np.ndarray]:
    return {DRAFTS: np.array(model.draft_vocabulary, "int32")} if model.draft_vocabulary else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_plain(path: Path) -> bool:
    """Whether it is a file that lies there itself; a link may lead anywhere, and a pipe never ends."""
    return path.is_file() and not path.is_symlink()
