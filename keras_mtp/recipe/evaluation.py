"""The table `[evaluation]`."""

import dataclasses
from typing import ClassVar

from keras_mtp.recipe.table import Table, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRecipe(Table):
    """How the model is judged before, during and after training."""

    _path: ClassVar[str] = "evaluation."
    limit: int = field(64, "At most this many held-out examples, and as many test items.", minimum=1)
    test_limit: int = field(
        100_000, "At most this many test items, where that is fewer; 0: none are answered.", minimum=0
    )
    every: int = field(20, "Training steps between two evaluations on the held-out examples.", minimum=1)
    batch_size: int = field(
        16,
        "Examples per forward pass, and, rounded up to a multiple of 32, prompts answered at a time.",
        minimum=1,
    )
    max_new_tokens: int = field(256, "Longest answer to a test item, in tokens.", minimum=1)
    max_prompt_tokens: int = field(
        0,
        "Test items with a longer prompt are passed over, which a report counts; 0 passes over none.",
        minimum=0,
    )
