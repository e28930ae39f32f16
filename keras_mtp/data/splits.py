"""Training examples, and the held-out slice taken out of them.

The held-out slice decides everything that is decided during a run; the test split is touched at the end only. The slice
is fixed: the same items whatever the seed and however many of them are looked at, so runs can be compared item by item,
and what a run trains on never depends on how much is evaluated.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from keras_mtp.data.encoding import Encoded, EncodedSplit, encode_all
from keras_mtp.data.example import Example
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.recipe import Recipe

HELD_OUT_ITEMS = 512
HELD_OUT_SHARE = 0.1  # of a small training split


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A training split as tokens.

    Args:
        training: what is trained on. held_out: what is held out and evaluated on. encoded: what both were taken from, and
            what was left out of it or cut.
    """

    training: list[Encoded]
    held_out: list[Encoded]
    encoded: EncodedSplit


def encoded_splits(examples: Iterable[Example], tokenizer: Tokenizer, recipe: Recipe) -> Splits:
    """Encodes and splits a task's training split as a recipe says.

    Raises:
        UserError: as `encode_all` and `split_held_out`.
    """
    data = recipe.data
    encoded = encode_all(examples, tokenizer, data.max_tokens, data.too_long, data.special_text)
    training, held_out = split_held_out(encoded.examples, recipe.evaluation.limit)
    return Splits(training=training, held_out=held_out, encoded=encoded)


def split_held_out(examples: Sequence[Encoded], limit: int) -> tuple[list[Encoded], list[Encoded]]:
    """Splits off the held-out slice.

    Args:
        examples: the encoded training split.
        limit: how many of the held-out items to evaluate on.

    Returns:
        `(training, held_out)`: at most `limit` held-out items; the rest of the slice is in neither, nor is what says the
        same, token for token, as one of the slice.

    Raises:
        UserError: fewer than 2 examples.
    """
    if len(examples) < 2:
        raise UserError(
            f"At least 2 training examples must fit `data.max_tokens`. Received: {len(examples)} that do. "
            "Raise data.max_tokens, or give more or shorter examples."
        )
    order = np.random.default_rng(list(b"held out")).permutation(len(examples))
    size = max(min(HELD_OUT_ITEMS, int(len(examples) * HELD_OUT_SHARE)), 1)
    held_out = [examples[i] for i in order[:size]]
    seen = {item.ids.tobytes() for item in held_out}
    training = [examples[i] for i in np.sort(order[size:]) if examples[i].ids.tobytes() not in seen]
    return training, held_out[:limit]


def places_by_source(examples: Sequence[Encoded]) -> dict[str, list[int]]:
    """Where the examples of each source stand in the list, the largest source first; nothing if they name no source."""
    places: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        if example.source:
            places.setdefault(example.source, []).append(place)
    return dict(sorted(places.items(), key=lambda entry: (-len(entry[1]), entry[0])))
