"""What a decoding keeps of the tokens that it has read: keys and values, and the states that heads read.

    slot of the cache = position of the token in its row      [ prefix | prompt | answer ]

Every row writes at its own place, so rows of different lengths advance each at its own pace, and going back to an
earlier position is all that forgetting a token takes: what lies behind a row's position is never looked at before it is
written again.

B rows, R new tokens per row, S cache slots, H key-value heads, E head size.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_mtp.at_once import CHUNK

Entry = list  # keys and values of one block, each (B, H, S, E)


class Cache(NamedTuple):
    """What is kept of the tokens that have been read.

    Args:
        trunk: an `Entry` per block. heads: a list of `Entry` per head. reads: by its name, a trunk state that some head
            reads, (B, S, D).
    """

    trunk: list[Entry]
    heads: list[list[Entry]]
    reads: dict[str, Any]

    @property
    def slots(self) -> int:
        """S; a tensor where a graph leaves it free."""
        return ops.shape(self.trunk[0][0])[2]

    def filled(self, end) -> "Cache":
        """What a pass needs that looks at no slot from `end` (int tensor ()) on.

        JAX and TensorFlow compile for one size, and their attention ends where the slots end that are filled. On torch it is
        a view of so many whole chunks: what is written into them is written into the cache.
        """
        if keras.config.backend() != "torch":
            return self
        slots = -(-int(end) // CHUNK) * CHUNK
        return keras.tree.map_structure(lambda x: x[..., :slots, :], self)

    def after(self, filled: "Cache") -> "Cache":
        """The cache, given its `filled` part as a pass has left it."""
        return self if keras.config.backend() == "torch" else filled

    def padded(self, more: int) -> "Cache":
        """With so many more slots."""
        return keras.tree.map_structure(
            lambda x: ops.pad(x, [*[(0, 0)] * (len(x.shape) - 2), (0, more), (0, 0)]), self
        )


def at_slots(buffer, start, width: int):
    """(B, S) -> (B, R), or (B, S, E) -> (B, R, E): of every row the R = `width` slots from `start` (B,) on."""
    places = positions_from(start, width)
    return ops.take_along_axis(buffer, places if len(buffer.shape) == 2 else places[:, :, None], axis=1)


def positions_from(start, width: int):
    """(B,) -> (B, R): `width` places from `start` on."""
    return start[:, None] + ops.arange(width, dtype="int32")[None]
