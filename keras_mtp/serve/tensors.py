"""JSON to the inputs of a signature, in the two ways that TensorFlow Serving's REST API has, and its outputs to JSON."""

from typing import Any

import numpy as np

from keras_mtp.limits import Refused


def columns(inputs: Any, specs: dict[str, Any]) -> dict[str, Any]:
    """'inputs': a tensor by each name, or one alone."""
    if len(specs) == 1 and not isinstance(inputs, dict):
        inputs = {next(iter(specs)): inputs}
    return _named(inputs, specs, "'inputs'")


def rows(instances: Any, specs: dict[str, Any]) -> dict[str, Any]:
    """'instances': a list, of a value by each name, or of one alone."""
    if not isinstance(instances, list) or not instances:
        raise Refused("'instances' must be a list that is not empty.")
    if len(specs) == 1 and not any(isinstance(row, dict) for row in instances):
        return {next(iter(specs)): instances}
    named = [_named(row, specs, "Each of 'instances'") for row in instances]
    return {key: [row[key] for row in named] for key in specs}


def _named(values: Any, specs: dict[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(values, dict) or values.keys() != specs.keys():
        got = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise Refused(f"{what} must hold {', '.join(specs)}. Received: {got!s:.80}.")
    return values


def tensor(name: str, value: Any, spec: Any) -> np.ndarray:
    """A NumPy array of the type that a signature has; whole numbers, as all inputs here are."""
    try:
        array = np.array(value)
    except ValueError:
        array = np.array(None)
    if array.size == 0 and array.ndim == len(spec.shape):
        array = array.astype("int64")
    bounds = np.iinfo(spec.dtype.as_numpy_dtype)
    right = array.dtype.kind == "i" and array.ndim == len(spec.shape)
    if not right or (array.size and not bounds.min <= array.min() <= array.max() <= bounds.max):
        shape = ", ".join("any" if size is None else str(size) for size in spec.shape)
        raise Refused(f"`{name}` must be whole numbers of shape ({shape}). Received: {value!s:.80}.")
    return array.astype(spec.dtype.as_numpy_dtype)


def one_or_named(values: dict[str, Any]) -> Any:
    """Outputs by name, or the only one."""
    return next(iter(values.values())) if len(values) == 1 else values
