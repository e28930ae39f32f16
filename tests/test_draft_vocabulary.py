import numpy as np
import pytest

from keras_mtp.data.draft_vocabulary import most_frequent
from keras_mtp.data.encoding import Encoded


def _item(*ids: int) -> Encoded:
    return Encoded(id="", ids=np.array(ids, "int32"), is_answer=np.arange(len(ids)) > 0)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [2]), (2, [2, 7]), (3, [2, 7, 9]), (9, [2, 4, 7, 9])]
)
def test_most_frequent_first_and_never_one_that_does_not_occur(count, expected):
    assert most_frequent([_item(7, 9, 2), _item(7, 2, 7), _item(9, 2, 4)], count) == expected
