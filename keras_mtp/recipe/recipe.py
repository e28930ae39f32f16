"""The tables together: a whole run."""

# ruff: noqa: RUF009
# The tables that stand as defaults are frozen, which ruff does not see from here.

import dataclasses

from keras_mtp import tuning
from keras_mtp.recipe.contradictions import refuse_contradictions
from keras_mtp.recipe.data import DataRecipe
from keras_mtp.recipe.distribution import DistributionRecipe
from keras_mtp.recipe.evaluation import EvaluationRecipe
from keras_mtp.recipe.heads import HeadsRecipe
from keras_mtp.recipe.model import ModelRecipe
from keras_mtp.recipe.prefix import PrefixRecipe
from keras_mtp.recipe.start import StartRecipe
from keras_mtp.recipe.table import Table, field
from keras_mtp.recipe.training import TrainingRecipe
from keras_mtp.recipe.tuning import TuningRecipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Table):
    """A whole run."""

    name: str = field("my-recipe", "Short name, used for the run's folder.", pattern=r"[A-Za-z0-9][\w.-]*")
    task: str = field("gsm8k", "What is trained for and judged by.")
    description: str = field("", "One line for the list of recipes.")
    model: ModelRecipe = ModelRecipe()
    start: StartRecipe = StartRecipe()
    data: DataRecipe = DataRecipe()
    tuning: TuningRecipe = TuningRecipe()
    prefix: PrefixRecipe = PrefixRecipe()
    heads: HeadsRecipe = HeadsRecipe()
    training: TrainingRecipe = TrainingRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    distribution: DistributionRecipe = DistributionRecipe()

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_contradictions(self)

    @property
    def prefix_length(self) -> int:
        """P: `prefix.length` where there is a prefix, else 0."""
        return self.prefix.length if {*tuning.PREFIXES} & {*self.tuning.methods} else 0

    @property
    def tuned(self) -> str:
        """What is trained besides the heads, in words."""
        named = {
            "prefix": f"a prefix of {self.prefix.length} vectors",
            "prefix_kv": f"a prefix of {self.prefix.length} keys and values in every block",
            "lora": f"LoRA of rank {self.tuning.lora_rank} on {', '.join(self.tuning.projections)}",
            "full": "all weights of the model",
            "heads": "nothing",
        }
        return " and ".join(named[name] for name in self.tuning.methods)

    @property
    def rate_note(self) -> str:
        """What to say of a learning rate that is far from the method's usual ones; "" of any other."""
        return "" if self.heads_alone else tuning.rate_note(self.tuning.methods, self.training.learning_rate)

    @property
    def heads_alone(self) -> bool:
        """Whether the heads are trained and nothing else."""
        return self.heads.purpose == "speed" or self.tuning.methods == ("heads",)
