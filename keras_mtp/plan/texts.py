"""How many training examples a run has, and how long they are: read off data that are here, else as the user says."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from keras_mtp.at_once import PREFILL
from keras_mtp.data.lengths import MULTIPLE, bucket_lengths, enough_buckets, shared_tokens
from keras_mtp.data.splits import encoded_splits
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.recipe import Recipe
from keras_mtp.tasks import load_task

DOWNLOADED = ("hub", "tfds")
ANSWER_SHARE = 0.5  # of an example's tokens, where nobody has seen one


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The training examples, as far as they decide memory and time.

    Args:
        examples: how many. tokens: of the longest padded row. mean_tokens: per padded row, on average.
        labelled: tokens to learn per example, on average. prompt_tokens: of the longest prompt.
        shared: tokens that all begin with. lengths: how many lengths rows are padded to.
        origin: where this is from, in words. counted: whether a tokenizer was asked.
    """

    examples: int
    tokens: int
    mean_tokens: float
    labelled: float
    prompt_tokens: int
    origin: str
    shared: int = 0
    lengths: int = 1
    counted: bool = False


def texts(recipe: Recipe, tokenizer: Tokenizer | None, examples: int | None, tokens: int | None) -> Texts:
    """What a recipe trains on. Nothing is downloaded.

    Args:
        tokenizer: to count with; None if none is here. examples, tokens: what the user says, before what is read.
    """
    found = _assumed(recipe)
    if tokenizer is not None and recipe.data.source not in DOWNLOADED and None in (examples, tokens):
        found = _read(recipe, tokenizer)
    if tokens:
        found = _of_length(found, tokens)
    if examples and tokens:
        found = dataclasses.replace(found, origin="as --examples and --tokens say")
    return dataclasses.replace(found, examples=examples or found.examples)


def _read(recipe: Recipe, tokenizer: Tokenizer) -> Texts:
    data = recipe.data
    training = encoded_splits(
        load_task(recipe.task, data.source).examples("train"), tokenizer, recipe
    ).training
    lengths = np.array([len(item.ids) for item in training])
    buckets = bucket_lengths(lengths, data.buckets or enough_buckets(lengths))
    return Texts(
        examples=len(training),
        tokens=int(buckets[-1]),
        mean_tokens=float(buckets[np.searchsorted(buckets, lengths)].mean()),
        labelled=float(np.mean([item.is_answer.sum() for item in training])),
        prompt_tokens=max(len(item.prompt_ids) for item in training),
        shared=shared_tokens(training),
        lengths=len(buckets),
        origin=f"padded, as read from {data.source}",
        counted=True,
    )


def _assumed(recipe: Recipe) -> Texts:
    """As many examples as the recipe's steps see, each as long as it allows."""
    unread = Texts(
        examples=recipe.training.steps * recipe.training.batch_size,
        tokens=0,
        mean_tokens=0,
        labelled=0,
        prompt_tokens=0,
        origin="assumed: steps x batch_size examples of data.max_tokens, no data being here (--examples and --tokens say otherwise)",
    )
    return _of_length(unread, recipe.data.max_tokens)


def _of_length(found: Texts, tokens: int) -> Texts:
    """All rows of so many tokens; the share to learn stays."""
    share = found.labelled / found.mean_tokens if found.mean_tokens else ANSWER_SHARE
    tokens = -(-tokens // MULTIPLE) * MULTIPLE
    return dataclasses.replace(
        found,
        tokens=tokens,
        mean_tokens=float(tokens),
        labelled=share * tokens,
        prompt_tokens=max(round((1 - share) * tokens), PREFILL),
        shared=min(found.shared, tokens - 1),
        lengths=1,
    )
