"""What was trained, in one folder: safetensors and JSON, written whole or not at all, checked when read.

    checkpoint/
      trained.safetensors     prefix, LoRA or the whole trunk, as the run's method says, and the heads, by names that no
                              backend decides; and the token ids that drafts are chosen among
      optimizer.safetensors   the optimizer of the last stage
      checkpoint.json         format, base model and its hash, steps done, SHA-256 of the two files

The base model is not in it, only its name and hash: megabytes, not gigabytes, unless all of it was trained. Weights are neutral: a checkpoint written
on one backend is read on the others.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, get_origin

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from keras_mtp.errors import UserError
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.models.tuned_weights import OWNERS, named, tuned_variables

if TYPE_CHECKING:
    import keras

    from keras_mtp.models.mtp_causal_lm import MTPCausalLM

FORMAT = 1
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
        attached: which state of the trunk each head reads, by head; empty in older files, whose heads are at their default.

    Raises:
        TypeError: a value of another type than it is declared with.
    """

    format: int
    base: str
    base_sha256: str
    steps: int
    files: dict[str, str]
    attached: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if type(value) is not (get_origin(spec.type) or spec.type):
                raise TypeError(f"`{spec.name}` is a {type(value).__name__}")


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
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(temporary / TRAINED, _arrays(trained_variables(model)) | _draft_vocabulary(model))
        _write(temporary / OPTIMIZER, _arrays({f"{i:04d}": v for i, v in enumerate(optimizer_variables)}))
        manifest = Manifest(
            format=FORMAT,
            base=base.name,
            base_sha256=base.sha256,
            steps=steps,
            files={name: _sha256(temporary / name) for name in (TRAINED, OPTIMIZER)},
            attached=_attached(model),
        )
        (temporary / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    _sync(folder.parent)


def read_manifest(folder: Path) -> Manifest:
    """Reads `checkpoint.json` and checks the files it names.

    Raises:
        UserError: no checkpoint there, not one of ours, or a file that is missing or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"No finished checkpoint in {folder}. Give the folder of a run that has ended.")
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not written by keras_mtp: {error}") from error
    if manifest.format != FORMAT:
        raise UserError(
            f"{path} has format {manifest.format}; this version of keras_mtp reads format {FORMAT}."
        )
    for name in (TRAINED, OPTIMIZER):
        file = folder / name
        if not file.is_file() or _sha256(file) != manifest.files.get(name):
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
    try:
        arrays = load_file(folder / TRAINED)
    except SafetensorError as error:
        raise UserError(f"{folder / TRAINED} cannot be read: {error}") from error
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
    reads_by_default = dict(
        zip(model.head_names[1:], (type(head).reads for head in model.heads), strict=True)
    )
    for name, reads in list(_attached(model).items())[:heads]:
        trained_on = manifest.attached.get(name, reads_by_default[name])
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


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        save_file(arrays, path)
    except SafetensorError as error:  # its name for whatever the disk says
        raise UserError(
            f"The checkpoint must be written to {path.parent.parent}. Received: {error}. Make room there, and run again."
        ) from error


def _draft_vocabulary(model: "MTPCausalLM") -> dict[str, np.ndarray]:
    return {DRAFTS: np.array(model.draft_vocabulary, "int32")} if model.draft_vocabulary else {}


def _arrays(variables: dict[str, "keras.Variable"]) -> dict[str, np.ndarray]:
    from keras import ops

    return {name: np.ascontiguousarray(ops.convert_to_numpy(v.value)) for name, v in variables.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Makes sure that a file or folder survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
