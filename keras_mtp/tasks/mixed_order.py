"""An order as good as random that contents alone decide: the first few of a split are then a fair sample of it."""

import hashlib

from keras_mtp.data.example import Example


def rank(example: Example) -> str:
    """What to sort by; the same for examples that say the same, wherever they stand."""
    return hashlib.sha256(repr(example.normalised).encode()).hexdigest()
