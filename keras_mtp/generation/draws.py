"""The random numbers behind sampled tokens: one for every new token, fixed beforehand and drawn by NumPy. No Keras here."""

import numpy as np


def uniforms(seed: int, row: int, count: int) -> np.ndarray:
    """The numbers of a row's first `count` new tokens: float32 (count,), above 0 and below 1.

    They are odd multiples of 2^-23, so that none becomes 1 by rounding.
    """
    drawn = np.random.default_rng([seed, row, *b"sampling"]).random(count)
    return ((np.floor(drawn * 2**22) + 0.5) / 2**22).astype("float32")
