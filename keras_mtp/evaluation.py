"""What a model is judged by: held-out loss and top-1 of every head, and the task's own score on generated answers.

A held-out loss is total nats over total answer tokens, never a mean of batch means. Items are kept apart, so that two
runs can be compared item by item.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_mtp import backend, distribution
from keras_mtp.at_once import answered_rows
from keras_mtp.data.encoding import Encoded, encode_prompt
from keras_mtp.data.example import Example
from keras_mtp.data.lengths import bucket_lengths, shared_tokens
from keras_mtp.data.targets import head_targets, pad
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.generation.generator import Generator
from keras_mtp.journal import Journal
from keras_mtp.losses import score_rows
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import EvaluationRecipe, Recipe
from keras_mtp.tasks.task import Task

BUCKETS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadScore:
    """One head on the held-out items; arrays (items,).

    Args:
        nats: summed cross-entropy of each item's answer tokens.
        hits: how many of them the largest logit got right.
        tokens: how many there are.
    """

    nats: np.ndarray
    hits: np.ndarray
    tokens: np.ndarray

    @property
    def loss(self) -> float:
        """Nats per answer token, over all items."""
        return float(self.nats.sum() / max(self.tokens.sum(), 1))

    @property
    def top1(self) -> float:
        """Share of answer tokens predicted right."""
        return float(self.hits.sum() / max(self.tokens.sum(), 1))

    def part(self, places: Sequence[int]) -> "HeadScore":
        """The score on some of the items, given by their places."""
        items = np.asarray(places)
        return HeadScore(nats=self.nats[items], hits=self.hits[items], tokens=self.tokens[items])


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskScore:
    """A task's score on generated answers.

    Args:
        metric: its name. scores: one per item, 0.0 to 1.0. completions: what the model said.
        further: the scores by other measures, by their names. passed_over: how many items were not asked, their prompts
            being too long.
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


class HeldOutEvaluation:
    """Scores every head of a model on a fixed list of examples; call it as often as needed.

    Args:
        model: the model to judge, as it stands when called.
        examples: encoded held-out examples.
        batch_size: examples per forward pass.
        target: what the heads beyond head_1 are to predict, see `head_targets`.
    """

    def __init__(
        self, model: MTPCausalLM, examples: Sequence[Encoded], batch_size: int, target: str = "further"
    ):
        self.names = model.head_names
        self.unembedding = model.backbone.token_embedding
        self.view = model.training_view(shared_tokens=shared_tokens(examples))
        self.examples = examples
        self.batch_size = batch_size
        self.target = target
        self._score = backend.compiled(self._score_batch, self.view.variables + self.unembedding.variables)

    def __call__(self) -> dict[str, HeadScore]:
        lengths = np.array([len(item.ids) for item in self.examples])
        widths = bucket_lengths(lengths, BUCKETS)
        order = np.argsort(lengths, kind="stable")
        sums = {name: np.zeros((3, len(order))) for name in self.names}  # nats, hits, tokens
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            width = int(widths[np.searchsorted(widths, lengths[rows].max())])
            ids, is_answer = pad([self.examples[i] for i in rows], width, rows=self.batch_size)
            targets, weights = head_targets(ids, is_answer, self.names, self.target)
            scored = self._score(ids, targets, weights)
            for name in self.names:
                nats, hits = (distribution.active().whole(v)[: len(rows)] for v in scored[name])
                sums[name][:, rows] = nats, hits, weights[name].sum(1)[: len(rows)]
        return {name: HeadScore(nats=s[0], hits=s[1], tokens=s[2]) for name, s in sums.items()}

    def _score_batch(self, ids, targets, weights):
        states = self.view(ids, training=False)
        scored = {}
        for name in self.names:
            per_token = score_rows(targets[name], states[name], weights[name], self.unembedding)
            scored[name] = tuple(ops.sum(v, axis=-1) for v in per_token)
        return scored


class TaskEvaluation:
    """Lets a model answer a task's items greedily and scores what it says.

    Args:
        model: the model to judge, as it stands when called.
        batch_size: prompts decoded together. They are filled up to a multiple of `at_once.ROWS`, so that an answer depends
            neither on this number nor on its neighbours. max_new_tokens: longest answer.
        passed_over: how many items are not among the examples because their prompts are too long.
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
        self.task, self.tokenizer, self.examples, self.batch_size = task, tokenizer, examples, batch_size
        self.generator = Generator(
            model,
            stop_ids=tokenizer.eos_ids,
            max_new_tokens=max_new_tokens,
            rows=answered_rows(batch_size),
        )

    @property
    def prompts(self) -> list[list[int]]:
        """The items' prompts, as token ids."""
        return [_prompt(example, self.tokenizer) for example in self.examples]

    def cache_shape(self) -> tuple[int, int]:
        """Rows, and slots per row, of the largest key-value cache that the answers can need; (0, 0) where there are none."""
        if not self.examples or not self.generator.max_new_tokens:
            return 0, 0
        return self.generator.cache_shape(sorted(self.prompts, key=len)[-self.batch_size :])

    def __call__(self, journal: Journal | None = None) -> TaskScore:
        """Asks all items; answers that are in the journal are not made again."""
        journal = journal or Journal()
        prompts = self.prompts
        width = max((len(prompt) for prompt in prompts), default=0)
        completions: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            tokens = journal.piece(batch, partial(self.generator, batch, pad_to=width))
            completions += [self.tokenizer.decode(ids) for ids in tokens]
        said = list(zip(self.examples, completions, strict=True))
        further = [self.task.further_scores(*item) for item in said] or [{}]
        return TaskScore(
            metric=self.task.metric,
            scores=tuple(self.task.score(*item) for item in said),
            completions=tuple(completions),
            further={metric: tuple(scores[metric] for scores in further) for metric in further[0]},
            passed_over=self.passed_over,
        )


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


def write_held_out(
    path: Path, examples: Sequence[Encoded], before: Mapping[str, HeadScore], after: Mapping[str, HeadScore]
) -> None:
    """Writes every head's summed loss on every held-out example, before and after, so that runs can be compared item by item.

    Columns: `id`, and for every head `<head>_tokens` (answer tokens it predicts), `<head>_nats_before`, `<head>_nats`.
    """
    columns = {
        f"{name}_{what}": values
        for name, score in after.items()
        for what, values in (
            ("tokens", score.tokens.astype(int)),
            ("nats_before", before[name].nats.round(5)),
            ("nats", score.nats.round(5)),
        )
    }
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *columns])
        writer.writerows(
            zip((example.id for example in examples), *(v.tolist() for v in columns.values()), strict=True)
        )


def asked(task: Task, tokenizer: Tokenizer, recipe: EvaluationRecipe) -> tuple[list[Example], int]:
    """The test items that a recipe looks at, the first so many; and how many were passed over for their long prompts.

    Raises:
        UserError: every prompt is too long.
    """
    found: list[Example] = []
    passed_over = 0
    limit = min(recipe.limit, recipe.test_limit)
    for example in task.examples("test"):
        if len(found) == limit:
            break
        if recipe.max_prompt_tokens and len(_prompt(example, tokenizer)) > recipe.max_prompt_tokens:
            passed_over += 1
        else:
            found.append(example)
    if limit and not found:
        raise UserError(
            f"`evaluation.max_prompt_tokens` must leave a test item. Received: {recipe.max_prompt_tokens}, which all "
            f"{passed_over} prompts exceed. Raise it."
        )
    return found, passed_over


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
