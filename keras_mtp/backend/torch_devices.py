"""Several devices on torch."""

from keras_mtp.backend.group import Group
from keras_mtp.errors import UserError


class TorchGroup(Group):
    """See `Group`."""

    def __init__(self, data: int, model: int):
        super().__init__(data, model)
        if model > 1:
            raise UserError(
                f"`distribution.model` must be 1 on torch, which cannot split the weights. Received: {model}. Use --backend jax."
            )
        raise UserError(f"`distribution.data` must be 1 on torch. Received: {data}. Use --backend jax.")
