"""The processes and devices that train one model together, as the rest of the package sees them.

Every backend has its own in a file beside this one, made of what that backend brings: `keras.distribution` on JAX,
`tf.distribute` on TensorFlow, `torch.distributed` on torch. All processes run the same program on the same recipe; each
feeds its own rows of a batch, and one, the chief, writes.
"""

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from keras_mtp.errors import UserError

if TYPE_CHECKING:
    import numpy as np


class Group:
    """One process with one device; what a backend's own group starts from.

    Args:
        data: devices that share a batch. model: devices that share the weights; data * model devices in all.

    Attributes:
        process: this process's number, from 0. processes: how many there are.
    """

    def __init__(self, data: int = 1, model: int = 1):
        self.data, self.model = data, model
        self.process, self.processes = 0, 1

    @staticmethod
    def launched() -> bool:
        """Whether this process was started as one of several."""
        return False

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.process == 0

    def rows(self, size: int) -> slice:
        """The rows of a batch, or of a micro-batch, that this process feeds.

        Args:
            size: rows of all processes together; a multiple of `data`.
        """
        first = self.process * self.data // self.processes
        count = max(self.data // self.processes, 1)  # processes that share weights feed the same rows
        return slice(first * size // self.data, (first + count) * size // self.data)

    def scope(self) -> contextlib.AbstractContextManager:
        """In it the model is made, trained and judged."""
        return contextlib.nullcontext()

    def optimizer_class(self, kind: Any) -> Any:
        """`kind`, a class of Keras' optimizers, such that it clips the gradients of all rows, not those of a device's own."""
        return kind

    def prepare(self, view: Any) -> None:
        """Called with every Keras model that is compiled, before its `fit`."""

    def fit_input(self, batches: Any) -> Any:
        """This process's rows of all batches, a `PyDataset`, as `Model.fit` should get them."""
        return batches

    def distributed(self, arrays: Any) -> Any:
        """This process's rows of a batch, a nested structure of arrays, as tensors of all rows where the backend has such."""
        return arrays

    def by_rows(self, function: Callable, *, summed: bool = False) -> Callable:
        """`function` of tensors (B, ...), each device's rows by themselves where the backend must be told so.

        Args:
            function: gives a nested structure of such tensors; or, if `summed`, a sum over the rows.
        """
        return function

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all rows of a batch, from what `fit` logged in this process."""
        return list(values)

    def summed(self, tensors: Sequence) -> Sequence:
        """Sums over all rows of a batch, from tensors that this process made from its own."""
        return tensors

    def whole(self, tensor: Any) -> "np.ndarray":
        """A tensor's value, wherever its parts are. All processes must ask together."""
        import numpy as np
        from keras import ops

        return np.asarray(ops.convert_to_numpy(tensor))

    def from_chief(self, data: bytes) -> bytes:
        """The chief's `data`, in all processes, which wait for one another."""
        return data

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers, in all processes, which wait for one another."""
        return number

    def explained(self, error: BaseException) -> BaseException:
        """The error to show for one that was raised: another where a process that has gone is to blame, else the same."""
        return error

    def leave(self, *, failed: bool) -> None:
        """The last call. If it `failed`, this process must end without waiting for others, who may wait for it."""


def gone(error: object) -> UserError:
    """The error to show for one that was raised because another process has gone; or for what it says of that."""
    said = re.sub(r"\x1b\[\d*m", "", str(error)).strip()  # without gloo's and Keras' colours
    return UserError(
        "All processes of a run must stay until its end, and one has gone: see what it said last. Start all of them again: the "
        f"same command, with --run, goes on from the newest snapshot. Received: {said:.300}"
    )
