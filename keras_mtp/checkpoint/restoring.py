"""A checkpoint's weights, put into a model built from the same recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from keras_mtp.checkpoint.contents import DRAFTS, attached, numbered, trained_variables
from keras_mtp.checkpoint.manifest import TRAINED, Manifest, read_manifest, require_base
from keras_mtp.errors import UserError
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.models.tuned_weights import OWNERS

if TYPE_CHECKING:
    import keras

    from keras_mtp.models.mtp_causal_lm import MTPCausalLM


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


def _require_attached(manifest: Manifest, model: "MTPCausalLM", folder: Path, heads: int | None) -> None:
    """Raises a `UserError` if one of the first `heads` heads reads another state than the checkpoint's; their tensors look alike."""
    for name, reads in list(attached(model).items())[:heads]:
        trained_on = manifest.attached.get(name)
        if reads != trained_on:
            raise UserError(
                f"`heads.attach` must be {trained_on}, where {name} in {folder} was trained. Received: {reads}."
            )


def _are_tokens(ids: np.ndarray, model: "MTPCausalLM") -> bool:
    return bool(((ids >= 0) & (ids < model.backbone.vocabulary_size)).all())


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
