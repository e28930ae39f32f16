"""What a recipe judges a model by: the held-out slice of the training split, and items of the test split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from keras_mtp.data.encoding import Encoded
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.evaluation.held_out import HeadScore, HeldOutEvaluation, write_held_out
from keras_mtp.evaluation.on_task import TaskEvaluation, TaskScore, asked, write_answers
from keras_mtp.journal import Journal
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe
from keras_mtp.run_folder import ANSWERS, HELD_OUT
from keras_mtp.tasks.task import Task


class Scores(NamedTuple):
    """What a model is worth.

    Args:
        held_out: every head on the held-out examples. on_task: the answers to the test items.
    """

    held_out: Mapping[str, HeadScore]
    on_task: TaskScore


class Judge:
    """Judges a model, as it stands when called.

    Args:
        model, tokenizer: whom. task: what the test items are taken from.
        examples: encoded held-out examples. recipe: how many items, and how they are asked.
    """

    def __init__(
        self,
        model: MTPCausalLM,
        tokenizer: Tokenizer,
        task: Task,
        examples: Sequence[Encoded],
        recipe: Recipe,
    ):
        settings = recipe.evaluation
        items, passed_over = asked(task, tokenizer, settings, recipe.data.special_text)
        self.held_out = HeldOutEvaluation(model, examples, settings.batch_size, recipe.heads.target)
        self.on_task = TaskEvaluation(
            model,
            task,
            tokenizer,
            items,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            passed_over=passed_over,
        )

    def __call__(self, journal: Journal | None = None) -> Scores:
        """Judges by both; answers that are in the journal are not made again."""
        return Scores(self.held_out(), self.on_task(journal))

    def __str__(self) -> str:
        return f"{len(self.held_out.examples)} held-out examples, {len(self.on_task.examples)} test items"

    def write(self, folder: Path, before: Scores, after: Scores) -> None:
        """Writes into a run's folder what it was worth, example by example and item by item."""
        write_held_out(folder / HELD_OUT, self.held_out.examples, before.held_out, after.held_out)
        write_answers(folder / ANSWERS, self.on_task.examples, before.on_task, after.on_task)
