"""Tiny Llamas in int8 or int4, and beside them the same in float32 with the values that int8 or int4 has."""

import keras
import numpy as np
from keras import ops

from keras_mtp.models import filling, llama
from keras_mtp.models.llama import named_weights, sizes_of, weight_shapes
from tests import tiny


def weights(backbone: keras.Model) -> dict[str, np.ndarray]:
    """The weights of a float backbone as files have them, by llama.cpp's names."""
    shapes = weight_shapes(sizes_of(backbone))
    found = {}
    for name, layer, attribute in named_weights(backbone):
        array = ops.convert_to_numpy(getattr(layer, attribute))
        is_kernel = attribute in ("kernel", "reverse_embeddings")
        found[name] = array.reshape(-1, shapes[name][0]).T if is_kernel else array
    return found


def loaded(plain: keras.Model, *, dtype: str = "float32", quantize: str = "none", rounding: str = "none"):
    """`plain`'s weights in a backbone that is stored so."""

    def refuse(reason: str):
        raise AssertionError(reason)

    rows = weights(plain)
    with filling.without_values():
        backbone = llama.build(sizes_of(plain), filling.policy(dtype, quantize))
    filling.fill(backbone, lambda name, start, stop: rows[name][start:stop], refuse, rounding)
    return backbone


def twins(mode: str, *, tied: bool = True) -> tuple[keras.Model, keras.Model]:
    """`(quantised, float32)`."""
    plain = tiny.backbone(tied=tied)
    return loaded(plain, quantize=mode), loaded(plain, rounding=mode)
