"""The weights that a model's method trains (see `keras_mtp.tuning`): by name, and switched on and off.

    prefix/...      the prefix: embeddings, or a block's keys and values
    lora/...        A and B of every adapted projection
    backbone/...    all of the trunk, where it is trained as a whole

Names are our own: Keras' paths start with a layer name that counts up over the process (`prefix_embedding_3/...`).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

    from keras_mtp.layers.mtp_head import MTPHead
    from keras_mtp.models.mtp_causal_lm import MTPCausalLM

OWNERS = ("prefix", "lora", "backbone")  # what the names above begin with


def tuned_variables(model: "MTPCausalLM") -> "dict[str, keras.Variable]":
    """What is trained of a model besides its heads, whether or not it is switched on now."""
    found: dict[str, keras.Variable] = {}
    if model.prefix is not None:
        found |= named("prefix", model.prefix)
    if model.lora is not None:
        found |= {f"lora/{name}": variable for name, variable in model.lora.named_variables().items()}
    if not model.freeze_backbone:
        found |= {f"backbone/{variable.path}": variable for variable in model.backbone.weights}
    return found


def named(owner: str, layer: "keras.layers.Layer") -> "dict[str, keras.Variable]":
    """A layer's variables by names that begin with `owner` in place of the layer's own name."""
    return {f"{owner}/{variable.path.split('/', 1)[1]}": variable for variable in layer.variables}


def count(model: "MTPCausalLM") -> int:
    """How many numbers `tuned_variables` holds."""
    return sum(math.prod(variable.shape) for variable in tuned_variables(model).values())


def train_only(model: "MTPCausalLM", *, tuned: bool, heads: "Sequence[MTPHead]") -> None:
    """Switches on what a stage trains: these heads, and what the method trains if `tuned`; everything else off."""
    if model.prefix is not None:
        model.prefix.trainable = tuned
    if model.lora is not None:
        model.lora.learn(tuned)
    elif not model.freeze_backbone:
        model.backbone.trainable = tuned
    for head in model.heads:
        head.trainable = head in heads
