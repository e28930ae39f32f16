"""What a model is judged by: held-out loss and top-1 of every head, and the task's own score on generated answers.

A held-out loss is total nats over total answer tokens, never a mean of batch means. Items are kept apart, so that two
runs can be compared item by item.

    held_out   loss and top-1 on held-out examples
    on_task    the score on test items
"""

from collections.abc import Sequence

from keras_mtp.data.encoding import Encoded
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.evaluation.held_out import BUCKETS, HeadScore, HeldOutEvaluation, write_held_out
from keras_mtp.evaluation.on_task import TaskEvaluation, TaskScore, asked, write_answers
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe
from keras_mtp.tasks.task import Task

__all__ = [
    "BUCKETS",
    "HeadScore",
    "HeldOutEvaluation",
    "TaskEvaluation",
    "TaskScore",
    "asked",
    "judges",
    "write_answers",
    "write_held_out",
]


def judges(
    model: MTPCausalLM,
    tokenizer: Tokenizer,
    task: Task,
    held_out: Sequence[Encoded],
    recipe: Recipe,
) -> tuple[HeldOutEvaluation, TaskEvaluation]:
    """What a recipe judges a model by: the held-out slice of the training split, and items of the test split."""
    settings = recipe.evaluation
    examples, passed_over = asked(task, tokenizer, settings)
    on_task = TaskEvaluation(
        model,
        task,
        tokenizer,
        examples,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        passed_over=passed_over,
    )
    return HeldOutEvaluation(model, held_out, settings.batch_size, recipe.heads.target), on_task
