"""The table `[tuning]`."""

import dataclasses
from typing import ClassVar

from keras_mtp import tuning
from keras_mtp.recipe.table import Table, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningRecipe(Table):
    """What is trained besides the heads, so that head_1 becomes better. training.learning_rate is for all of it."""

    _path: ClassVar[str] = "tuning."
    method: str = field(
        "prefix",
        "prefix: vectors in front of every text (prompt tuning, arXiv 2104.08691). prefix_kv: keys and values in front of it "
        "in every block (prefix tuning, arXiv 2101.00190). lora: low-rank changes of the model's matrices (arXiv 2106.09685). "
        "full: all of the model's weights; a checkpoint then holds them. heads: only the heads, all of them for "
        "training.steps. prefix+lora and prefix_kv+lora are trained together.",
    )
    lora_rank: int = field(8, "With lora: the rank of a change.", minimum=1)
    lora_alpha: float = field(16.0, "With lora: a change is scaled by lora_alpha / lora_rank.", above=0)
    lora_targets: str = field(
        "query+value",
        "With lora: which matrices of a block are changed, some of query, key, value, output, gate, up and down, joined by "
        "`+`; or all.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        tuning.methods(self.method)
        tuning.projections(self.lora_targets)

    @property
    def methods(self) -> tuple[str, ...]:
        """The names in `method`, in the order of `tuning.METHODS`."""
        return tuning.methods(self.method)

    @property
    def projections(self) -> tuple[str, ...]:
        """The names in `lora_targets`, in the order of `tuning.PROJECTIONS`."""
        return tuning.projections(self.lora_targets)
