"""Operations noted and run again are the function itself, to the last bit."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp import backend
from keras_mtp.backend import recording

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="the others compile it with whatever calls it"
)


class Pair(NamedTuple):
    x: object
    scale: float


@pytest.fixture
def watched():
    """A recorded function, and a list that grows whenever it is really called."""
    calls = []
    variable = keras.Variable(np.arange(12, dtype="float32").reshape(4, 3))

    def function(pair, buffer, start):
        calls.append(None)
        first, second = ops.split(ops.matmul(pair.x, variable) * pair.scale + 1.5, [1], axis=-1)
        buffer = backend.write_rows(buffer, ops.concatenate([second, first], axis=-1)[:, None], start)
        return Pair(ops.cumsum(ops.sum(buffer, axis=1), axis=-1), 2.0), buffer

    return function, backend.recorded(function), variable, calls


def _arguments(seed, rows=2, scale=0.5):
    rng = np.random.default_rng(seed)
    x, buffer = rng.normal(size=(rows, 4)), rng.normal(size=(rows, 5, 3))
    start = rng.integers(0, 5, rows).astype("int32")
    tensors = [ops.convert_to_tensor(a.astype("float32")) for a in (x, buffer)]
    return Pair(tensors[0], scale), tensors[1], ops.convert_to_tensor(start)


def _same(function, again, seed, **options):
    wanted, filled = function(*_arguments(seed, **options))
    arguments = _arguments(seed, **options)
    got, buffer = again(*arguments)
    assert type(got) is Pair
    np.testing.assert_array_equal(ops.convert_to_numpy(got.x), ops.convert_to_numpy(wanted.x))
    np.testing.assert_array_equal(ops.convert_to_numpy(buffer), ops.convert_to_numpy(filled))
    assert buffer is arguments[1]  # written in place


def test_it_is_the_same_to_the_last_bit_and_called_no_more(watched):
    function, again, _, calls = watched
    for seed in range(recording.WORTH + 4):
        _same(function, again, seed)
    of_the_function_itself = recording.WORTH + 4
    assert len(calls) == of_the_function_itself + recording.WORTH + 1


def test_other_shapes_and_other_numbers_are_other_programs(watched):
    function, again, *_ = watched
    for seed in range(recording.WORTH + 3):
        for options in ({}, {"rows": 3}, {"scale": 0.25}):
            _same(function, again, seed, **options)
    assert len(again.programs) == 3


def test_a_variable_is_seen_as_it_is_now(watched):
    function, again, variable, calls = watched
    for seed in range(recording.WORTH + 1):
        _same(function, again, seed)
    variable.assign(variable * 3.0 - 1.0)
    before = len(calls)
    _same(function, again, 100)
    assert len(calls) == before + 1  # by the comparison alone


def test_a_function_that_asks_for_a_value_is_not_for_this(watched):
    """The other branch would be forgotten: torch says so rather than us being silently wrong."""
    again = backend.recorded(lambda x: x * 2 if float(ops.sum(x)) > 0 else x * 3)
    for _ in range(recording.WORTH):
        again(ops.ones(3))
    with pytest.raises(RuntimeError, match="value"):
        again(ops.ones(3))
