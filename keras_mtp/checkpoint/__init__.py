"""What was trained, in one folder: safetensors and JSON, written whole or not at all, checked when read.

    checkpoint/
      trained.safetensors     prefix, LoRA or the whole trunk, as the run's method says, and the heads, by names that no
                              backend decides; and the token ids that drafts are chosen among
      optimizer.safetensors   the optimizer of the last stage
      checkpoint.json         format, base model and its hash, steps done, SHA-256 of every other file and of its own text

The base model is not in it, only its name and hash: megabytes, not gigabytes, unless all of it was trained. Weights are neutral: a checkpoint written
on one backend is read on the others. A snapshot (snapshots/) is a checkpoint with further files, for training to go on from.

    manifest    `checkpoint.json`: written, and compared with what is there
    contents    what a checkpoint is made of, in memory
    saving      a checkpoint from a model
    restoring   a model's weights from a checkpoint
"""

from keras_mtp.checkpoint.contents import Content, content, numbered, trained_variables
from keras_mtp.checkpoint.manifest import MANIFEST, OPTIMIZER, TRAINED, Manifest, read_manifest, require_base
from keras_mtp.checkpoint.restoring import put, read_arrays, restore
from keras_mtp.checkpoint.saving import save, write

__all__ = [
    "MANIFEST",
    "OPTIMIZER",
    "TRAINED",
    "Content",
    "Manifest",
    "content",
    "numbered",
    "put",
    "read_arrays",
    "read_manifest",
    "require_base",
    "restore",
    "save",
    "trained_variables",
    "write",
]
