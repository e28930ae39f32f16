"""A task's own score on answers that a model gives to its test items."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import keras
import numpy as np

from keras_mtp.at_once import answered_rows
from keras_mtp.data.encoding import encode_prompt, refuse_special_text, special_text_in
from keras_mtp.data.example import Example
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.generation.generator import Generator
from keras_mtp.journal import Journal
from keras_mtp.recipe import EvaluationRecipe
from keras_mtp.tasks.task import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskScore:
    """A task's score on generated answers.

    Args:
        metric: its name. scores: one per item, 0.0 to 1.0. completions: what the model said.
        further: the scores by other measures, by their names. passed_over: how many items were not asked, their prompts
            being too long, or holding the text of a special token.
    """

    metric: str
    scores: tuple[float, ...]
    completions: tuple[str, ...]
    further: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    passed_over: int = 0

    @property
    def value(self) -> float:
        """Mean over the items; not a number if there are none."""
        return float(np.mean(self.scores)) if self.scores else math.nan

    @property
    def further_values(self) -> dict[str, float]:
        """Means by the other measures."""
        return {metric: float(np.mean(scores)) for metric, scores in self.further.items()}

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.scores)


class TaskEvaluation:
    """Lets a model answer a task's items greedily and scores what it says.

    Args:
        model: the model to judge, as it stands when called.
        batch_size: prompts answered at a time, rounded up to a multiple of `at_once.ROWS`. max_new_tokens: longest answer.
        passed_over: how many items are not among the examples, for their prompts; see `asked`.
    """

    def __init__(
        self,
        model: keras.Model,
        task: Task,
        tokenizer: Tokenizer,
        examples: Sequence[Example],
        *,
        batch_size: int,
        max_new_tokens: int,
        passed_over: int = 0,
    ):
        self.passed_over = passed_over
        self.task, self.tokenizer, self.examples = task, tokenizer, examples
        self.generator = Generator(
            model,
            stop_ids=tokenizer.eos_ids,
            max_new_tokens=max_new_tokens,
            rows=answered_rows(batch_size),
        )

    @cached_property
    def prompts(self) -> list[list[int]]:
        """The items' prompts, as token ids."""
        return [_prompt(example, self.tokenizer) for example in self.examples]

    def cache_shape(self) -> tuple[int, int]:
        """Rows, and slots per row, of the largest key-value cache that the answers can need; (0, 0) where there are none."""
        if not self.examples or not self.generator.max_new_tokens:
            return 0, 0
        return self.generator.cache_shape(self.prompts)

    def __call__(self, journal: Journal | None = None) -> TaskScore:
        """Asks all items; answers that are in the journal are not made again."""
        answers = self.generator.answer_all(self.prompts, journal)
        completions = [self.tokenizer.decode(ids) for ids in answers]
        said = list(zip(self.examples, completions, strict=True))
        further = [self.task.further_scores(*item) for item in said] or [{}]
        return TaskScore(
            metric=self.task.metric,
            scores=tuple(self.task.score(*item) for item in said),
            completions=tuple(completions),
            further={metric: tuple(scores[metric] for scores in further) for metric in further[0]},
            passed_over=self.passed_over,
        )


def asked(
    task: Task, tokenizer: Tokenizer, recipe: EvaluationRecipe, special_text: str = "refuse"
) -> tuple[list[Example], int]:
    """The test items that a recipe looks at, the first so many; and how many were passed over for their prompts.

    Args:
        special_text: what happens to prompts that hold the text of a special token, as in `encode_all`.

    Raises:
        UserError: every prompt is too long; or one holds the text of a special token, with "refuse".
    """
    found: list[Example] = []
    passed_over = 0
    limit = min(recipe.limit, recipe.test_limit)
    for example in task.examples("test"):
        if len(found) == limit:
            break
        if _is_marked(example, tokenizer, special_text) or _is_long(example, tokenizer, recipe):
            passed_over += 1
        else:
            found.append(example)
    if limit and not found:
        raise UserError(
            "`evaluation.max_prompt_tokens` and `data.special_text` must leave a test item. Received: "
            f"{recipe.max_prompt_tokens} and {special_text}, with which all {passed_over} were passed over. Change them."
        )
    return found, passed_over


def _is_marked(example: Example, tokenizer: Tokenizer, special_text: str) -> bool:
    """Whether the text of a special token is in what would be asked; refused if it is to be."""
    turns = example.messages[:-1]
    if special_text == "skip":
        return special_text_in(turns, tokenizer) is not None
    try:
        refuse_special_text(turns, tokenizer)
    except UserError as error:
        raise UserError(f"Test item {example.id}: {error}") from error
    return False


def _is_long(example: Example, tokenizer: Tokenizer, recipe: EvaluationRecipe) -> bool:
    return bool(recipe.max_prompt_tokens and len(_prompt(example, tokenizer)) > recipe.max_prompt_tokens)


def _prompt(example: Example, tokenizer: Tokenizer) -> list[int]:
    return encode_prompt(example.prompt, tokenizer, example.history)


def write_answers(path: Path, examples: Sequence[Example], before: TaskScore, after: TaskScore) -> None:
    """Writes what the model said about every test item, before and after: one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for place, example in enumerate(examples):
            row = {
                "id": example.id,
                **({"source": example.source} if example.source else {}),
                **({"history": [turn._asdict() for turn in example.history]} if example.history else {}),
                "prompt": example.prompt,
                "answer": example.answer,
                **({"references": example.references} if example.references else {}),
                "before": before.completions[place],
                "score_before": before.scores[place],
                **{f"{metric}_before": scores[place] for metric, scores in before.further.items()},
                "after": after.completions[place],
                "score": after.scores[place],
                **{metric: scores[place] for metric, scores in after.further.items()},
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
