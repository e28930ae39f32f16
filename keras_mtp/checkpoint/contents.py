"""What a checkpoint is made of: copies of all that a model's training changed, and which names that has."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_mtp import distribution
from keras_mtp.checkpoint.manifest import OPTIMIZER, TRAINED
from keras_mtp.models.tuned_weights import named, tuned_variables

if TYPE_CHECKING:
    import keras

    from keras_mtp.models.mtp_causal_lm import MTPCausalLM

DRAFTS = "draft_vocabulary"  # its name in TRAINED


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
        attached=attached(model),
    )


def trained_variables(model: "MTPCausalLM") -> dict[str, "keras.Variable"]:
    """The variables that belong into a checkpoint, by names of our own: what the method trains, and the heads."""
    variables = tuned_variables(model)
    for name, head in zip(model.head_names[1:], model.heads, strict=True):
        variables |= named(name, head)
    return variables


def attached(model: "MTPCausalLM") -> dict[str, str]:
    """Which state of the trunk each head reads, by head."""
    return {name: head.reads for name, head in zip(model.head_names[1:], model.heads, strict=True)}


def numbered(items: Iterable[Any]) -> dict[str, Any]:
    """What has only an order, by names that sort that way."""
    return {f"{i:06d}": item for i, item in enumerate(items)}


def copies(variables: Mapping[str, "keras.Variable"]) -> dict[str, np.ndarray]:
    """Copies of variables' values: the backends train on in the memory that `whole` shows."""
    whole = distribution.active().whole
    return {name: np.array(whole(v.value), order="C") for name, v in variables.items()}


def _draft_vocabulary(model: "MTPCausalLM") -> dict[str, np.ndarray]:
    return {DRAFTS: np.array(model.draft_vocabulary, "int32")} if model.draft_vocabulary else {}
