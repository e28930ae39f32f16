"""Against a few lines of NumPy that go through a pass token by token."""

import numpy as np
from keras import ops

from keras_mtp.generation.acceptance import agreeing, yielded

STOPS = [3, 5]


def _one_row(drafts, said, room):
    """How many tokens a row takes from a pass, and whether its answer has ended."""
    if room == 0:
        return 0, True
    taken = 0
    for place, token in enumerate(said):
        if place and drafts[place - 1] != said[place - 1]:
            break
        taken += 1
        if token in STOPS or taken == room:
            return taken, True
    return taken, False


def test_random_passes_as_token_by_token():
    rng = np.random.default_rng(0)
    for k in (1, 2, 3, 4):
        said = rng.integers(0, 7, (400, k)).astype("int32")
        right = rng.random((400, k - 1)) < 0.7
        drafts = np.where(right, said[:, :-1], (said[:, :-1] + 1) % 7).astype("int32")
        room = rng.integers(0, 6, 400).astype("int32")
        agree = agreeing(ops.convert_to_tensor(drafts), ops.convert_to_tensor(said))
        count, ended = yielded(
            ops.convert_to_tensor(said), agree, ops.convert_to_tensor(room), np.array(STOPS, "int32")
        )
        expected = [_one_row(*row) for row in zip(drafts, said, room, strict=True)]
        np.testing.assert_array_equal(ops.convert_to_numpy(count), [taken for taken, _ in expected])
        np.testing.assert_array_equal(ops.convert_to_numpy(ended), [end for _, end in expected])
