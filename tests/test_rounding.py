"""int8 and int4 in NumPy. That they are Keras' own, test_filling.py shows."""

import numpy as np
import pytest

from keras_mtp.rounding import BLOCK, MODES, packed, quantise, restored

pytestmark = pytest.mark.any_backend


def _rows(inputs: int = 3 * BLOCK) -> np.ndarray:
    return np.random.default_rng(0).normal(0.1, 1, (7, inputs)).astype("float32")


@pytest.mark.parametrize("inputs", [3 * BLOCK, 2 * BLOCK + 5])
def test_int8_is_off_by_half_a_step_at_most(inputs):
    rows = _rows(inputs)
    step = np.abs(rows).max(1, keepdims=True) / 127
    off = np.abs(restored(quantise(rows, "int8")) - rows)
    assert (off <= 0.501 * step).all() and off.max() > 0.4 * step.min()


@pytest.mark.parametrize("inputs", [3 * BLOCK, 2 * BLOCK + 5])
def test_int4_is_off_by_a_step_of_its_block_at_most(inputs):
    """A zero of its own is rounded as well: at a block's ends that is half a step more."""
    rows = _rows(inputs)
    off = np.abs(restored(quantise(rows, "int4")) - rows)
    for start in range(0, inputs, BLOCK):
        block = rows[:, start : start + BLOCK]
        padded = block if block.shape[1] == BLOCK else np.pad(block, ((0, 0), (0, 1)))
        step = (padded.max(1) - padded.min(1)) / 15
        assert (off[:, start : start + BLOCK].max(1) <= 1.01 * step).all()


@pytest.mark.parametrize("mode", MODES)
def test_zeros_stay_zeros(mode):
    assert not restored(quantise(np.zeros((2, BLOCK), "float32"), mode)).any()


@pytest.mark.parametrize("axis", [0, 1])
def test_two_values_share_a_byte(axis):
    values = np.array([[-8, 7, 1], [-1, 0, 3]], "int8")
    bytes_ = packed(values, axis).view("uint8")
    if axis == 0:
        np.testing.assert_array_equal(bytes_, [[0xF8, 0x07, 0x31]])
    else:
        np.testing.assert_array_equal(bytes_, [[0x78, 0x01], [0x0F, 0x03]])
