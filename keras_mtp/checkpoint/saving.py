"""A checkpoint, written whole or not at all."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from keras_mtp import disk, distribution
from keras_mtp.checkpoint.contents import Content, content
from keras_mtp.checkpoint.manifest import FORMAT, MANIFEST, Manifest, sha256
from keras_mtp.models.backbone import BaseInfo

if TYPE_CHECKING:
    import keras

    from keras_mtp.models.mtp_causal_lm import MTPCausalLM


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
            files={path.name: sha256(path) for path in sorted(new.iterdir())},
            attached=what.attached,
        )
        disk.DISK.write(new / MANIFEST, manifest.text)
