"""The table `[start]`."""

import dataclasses
from typing import ClassVar

from keras_mtp.recipe.table import Table, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartRecipe(Table):
    """The finished run whose trained weights and heads are the start, instead of fresh ones."""

    _path: ClassVar[str] = "start."
    run: str = field(
        "",
        "The folder of a finished run of the same base model, as --from sets it; empty starts afresh. What tuning.method "
        "trains, prefix.length, heads.kind and heads.attach must be the run's; heads beyond the run's start fresh, and only "
        "they are warmed up. With heads.purpose=speed the kind may be another, and all heads are fresh then.",
    )
    checkpoint: str = field(
        "",
        "SHA-256 of that run's trained weights. A run writes it into its recipe, which then starts from no others.",
    )
