"""A backbone without values, and a model's weights into it: one tensor at a time, a slab of rows at a time, as it is stored.

    file --slab of rows, float32--> rounded or quantised --> one NumPy array as Keras stores it --> the variable's first value

Keras gives every variable a first value when its layer is built, and copies what is assigned to it: that would be the trunk
twice, and a quantised one in float32 first. So the layers are built in a stateless scope, in which variables only note how
they would begin, and begin with their weight. Besides what is loaded already, one tensor and a few slabs are in memory.

The scope, `Variable._initialize` and the global list of variables that wait are Keras' own, of `backend/common/variables.py`;
test_filling.py fails where they change.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from keras_mtp import backend
from keras_mtp.models.llama import named_weights, sizes_of, weight_shapes
from keras_mtp.rounding import BLOCK, MODES, packed, quantise, restored

if TYPE_CHECKING:
    import keras
    import keras_hub

# (llama.cpp's name, first, last + 1) -> those rows of the weight as float32, (out, in), in Hugging Face's order.
Read = Callable[[str, int, int], np.ndarray]
EMBEDDINGS = "int8"  # how they are stored in a quantised model
_Slab = tuple[int, np.ndarray]  # the first row's number, rows as float32
_SLAB_WEIGHTS = 1 << 17  # as float32 half a MB


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Layers that are built inside have no values; `fill` gives them theirs."""
    import keras
    from keras.src.backend.common import global_state

    waiting = "uninitialized_variables"  # Keras would begin them all where the next stateless scope ends
    before = list(global_state.get_global_attribute(waiting, []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute(waiting, before)


def policy(dtype: Any, quantize: str) -> Any:
    """The dtype policy of a backbone that is stored so; everything but matrices is stored as `dtype` says.

    Scales are float32 whatever is computed in: a scale in bfloat16 is wrong by up to 0.4 % for all of an output's weights. With
    int4 the embeddings are int8: they decide what every token is and, tied, every logit, and are a small part of a large model.

    Args:
        dtype: anything Keras takes as a dtype policy. quantize: "none", "int8" or "int4".
    """
    import keras

    if quantize == "none":
        return dtype
    plain = keras.dtype_policies.get(dtype)
    if plain.name == "bfloat16":
        plain = keras.DTypePolicy("mixed_bfloat16")
    name = f"int4/{BLOCK}" if quantize == "int4" else quantize
    modes = {
        ".*token_embedding": EMBEDDINGS,
        r".*(query|key|value|attention_output|feedforward_\w*dense)": name,
    }
    policies = {path: keras.dtype_policies.get(f"{mode}_from_{plain.name}") for path, mode in modes.items()}
    return keras.dtype_policies.DTypePolicyMap(plain, policies)


class Place(NamedTuple):
    """Where a weight belongs.

    Args:
        name: llama.cpp's. layer: which holds it. attribute: as what: "embeddings", "reverse_embeddings", "kernel" or "scale".
        shape: of the weight in files, (out, in) for a matrix. head_dim: rows of an attention head.
    """

    name: str
    layer: Any
    attribute: str
    shape: tuple[int, ...]
    head_dim: int

    def slabs(self, read: Read, refuse: Callable[[str], NoReturn]) -> Iterator[_Slab]:
        """A weight in slabs; no attention head, of an even number of rows, is cut in two, nor a byte of int4."""
        multiple = self.head_dim
        size = max(multiple, _SLAB_WEIGHTS // math.prod(self.shape[1:]) // multiple * multiple)
        for start in range(0, self.shape[0], size):
            rows = read(self.name, start, min(start + size, self.shape[0]))
            if not np.isfinite(rows).all():
                refuse(f"{self.name} holds values that are not finite numbers")
            yield start, rows

    def fill(self, read: Read, refuse: Callable[[str], NoReturn], rounding: str = "none") -> None:
        """Gives the weight its value; see `fill`."""
        slabs = self.slabs(read, refuse)
        if self.attribute != "scale" and self.layer.quantization_mode in MODES:
            _fill_quantised(self, slabs)
        else:
            is_kernel = self.attribute == "kernel"
            how = rounding if is_kernel or rounding == "none" else EMBEDDINGS
            _fill_plain(self, slabs, "none" if self.attribute == "scale" else how)


def places(backbone: "keras_hub.models.Llama3Backbone") -> Iterator[Place]:
    """Where the weights of a backbone belong."""
    sizes = sizes_of(backbone)
    shapes = weight_shapes(sizes)
    for name, layer, attribute in named_weights(backbone):
        yield Place(name, layer, attribute, shapes[name], sizes.head_dim)


def fill(
    backbone: "keras_hub.models.Llama3Backbone",
    read: Read,
    refuse: Callable[[str], NoReturn],
    rounding: str = "none",
) -> None:
    """Gives a backbone that was built without values its weights.

    Args:
        read: gives rows of a weight.
        refuse: raises the source's own error for a reason.
        rounding: "int8" or "int4" gives the weights the values that they would have in it, though they are not stored so.
    """
    for place in places(backbone):
        place.fill(read, refuse, rounding)


def _fill_plain(place: Place, slabs: Iterable[_Slab], rounding: str) -> None:
    variable = getattr(place.layer, place.attribute)
    array, by_output = _empty(place.shape, place.attribute, _numpy_dtype(variable))
    for start, rows in slabs:
        if rounding != "none":
            rows = restored(quantise(rows, rounding))
        by_output[start : start + len(rows)] = rows
    _begin(variable, array)


def _fill_quantised(place: Place, slabs: Iterable[_Slab]) -> None:
    _, layer, attribute, (outputs, inputs), _ = place
    mode, zero = layer.quantization_mode, getattr(layer, f"{attribute}_zero", None)
    # In int4 two values share a byte: along the outputs of a kernel, along the inputs of all else.
    along = 0 if attribute == "kernel" else 1
    stored_shape = [outputs, inputs]
    if mode == "int4":
        stored_shape[along] = -(-stored_shape[along] // 2)
    groups = 1 if zero is None else -(-inputs // BLOCK)
    values, values_by_output = _empty(stored_shape, attribute, "int8")
    scales, scales_by_output = _empty((outputs, groups), attribute, "float32")
    zeros, zeros_by_output = _empty((outputs, groups), attribute, "int8")
    for start, rows in slabs:
        found, stop = quantise(rows, mode), start + len(rows)
        stored = packed(found.values, along) if mode == "int4" else found.values
        first = start // 2 if mode == "int4" and along == 0 else start
        values_by_output[first : first + len(stored)] = stored
        scales_by_output[start:stop] = found.scale
        if zero is not None:
            zeros_by_output[start:stop] = found.zero
    _begin(getattr(layer, attribute if attribute == "reverse_embeddings" else f"_{attribute}"), values)
    _begin(getattr(layer, f"{attribute}_scale"), scales)
    if zero is not None:
        _begin(zero, zeros)
        _begin(layer.g_idx, np.arange(inputs) // BLOCK)


def _empty(shape: Sequence[int], attribute: str, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """An array as Keras lays a weight out, and the same with its outputs first: an embedding's are first, others' last."""
    if attribute in ("embeddings", "scale"):
        array = np.empty(shape, dtype)
        return array, array
    array = np.empty(tuple(reversed(shape)), dtype)
    return array, array.T


def _begin(variable: "keras.Variable", array: np.ndarray) -> None:
    """Gives a variable its first value."""
    array = array.reshape(tuple(variable.shape)).astype(_numpy_dtype(variable), copy=False)
    variable._initialize(backend.from_numpy(array))
    variable._initializer = None


def _numpy_dtype(variable: "keras.Variable") -> np.dtype:
    return np.dtype(getattr(ml_dtypes, variable.dtype, variable.dtype))
