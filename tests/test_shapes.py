"""The sizes of published Llamas."""

import math

import pytest

from keras_mtp.errors import UserError
from keras_mtp.models.llama import weight_shapes
from keras_mtp.models.shapes import shape, shapes

pytestmark = pytest.mark.any_backend

# As the model cards count them: Meta's "1B (1.23B)" and "3B (3.21B)", SmolLM2's 135M.
PARAMETERS = {"smollm2_135m": 134_515_008, "llama3.2_1b": 1_235_814_400, "llama3.2_3b": 3_212_749_824}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shape_has_the_published_number_of_parameters(name):
    sizes = shape(name)
    assert sizes.problem() is None
    assert sum(map(math.prod, weight_shapes(sizes).values())) == PARAMETERS[name]


def test_every_shape_is_counted_here():
    assert set(shapes()) == set(PARAMETERS)


def test_an_unknown_shape_is_refused_by_name():
    with pytest.raises(UserError, match=r"one of smollm2_135m, .* Received: 'llama9'"):
        shape("llama9")
