"""The table `[distribution]`."""

import dataclasses
from typing import ClassVar

from keras_mtp.recipe.table import Table, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionRecipe(Table):
    """The devices that train together, in one process or in several that the user starts. The result does not depend on them."""

    _path: ClassVar[str] = "distribution."
    data: int = field(
        1,
        "Devices that share a batch, each with its own rows of it: must divide training.batch_size / training.accumulation.",
        minimum=1,
    )
    model: int = field(
        1,
        "Devices that share the weights, where those are too large for one; on JAX. data times model devices are used in all.",
        minimum=1,
    )
