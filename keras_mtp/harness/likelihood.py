"""How likely a model finds the ends of texts: what multiple choice and perplexity are made of.

    context        [ 5 6 7 ]
    continuation           [ 8 9 ]
    read           [ 5 6 7 8 ]          the last token is never read
    predicted            [ 8 9 ]        logits for these rows alone

Requests that read the same tokens are read once: the choices "A", "B", "C" and "D" after one question cost one pass, not
four. A pass is over texts of like length, and its logits are made a chunk of rows at a time (`losses.score_rows`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_mtp import backend
from keras_mtp.data.lengths import bucket_lengths
from keras_mtp.losses import CHUNK_ROWS, score_rows

WIDTHS = 4  # lengths that texts are padded to; each is a shape to compile
PASS_TOKENS = 4096  # positions of a pass, padding included; a longer text is a pass by itself

Watch = Callable[[Sequence[Any]], Iterable[Any]]


class Score(NamedTuple):
    """Of one continuation: its log-likelihood in nats, and whether each of its tokens was the likeliest."""

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """Tokens that are read once, and the requests that read them: (which request, its continuation)."""

    ids: tuple[int, ...]
    requests: list[tuple[int, Sequence[int]]]


class Scorer:
    """Scores continuations of contexts by `head_1`.

    Args:
        model: an `MTPCausalLM`; its prefix is in front of every context.

    Call arguments:
        requests: pairs (context, continuation) of token ids, neither empty.
        watch: is given the list of passes and goes through it; a progress bar, for one.

    Returns:
        List of `Score`, in the order of the requests.
    """

    def __init__(self, model: keras.Model):
        self.unembedding = model.backbone.token_embedding
        self.view = model.training_view()
        self._score = backend.compiled(self._score_tokens, self.view.variables + self.unembedding.variables)

    def __call__(
        self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], watch: Watch = iter
    ) -> list[Score]:
        found: list[Score] = [Score(0.0, True)] * len(requests)
        for rows, width, readings in watch(_passes(_readings(requests))):
            nats, hits = self._score_pass(rows, width, readings)
            tokens = 0
            for reading in readings:
                for request, continuation in reading.requests:
                    own = slice(tokens, tokens + len(continuation))
                    found[request] = Score(-float(nats[own].sum()), bool(hits[own].all()))
                    tokens = own.stop
        return found

    def _score_pass(self, rows: int, width: int, readings: Sequence[_Reading]):
        """Nats and hits (N,) of every continuation's tokens, one after the other."""
        ids = np.zeros((rows, width), "int32")
        places: list[int] = []
        targets: list[int] = []
        for row, reading in enumerate(readings):
            ids[row, : len(reading.ids)] = reading.ids
            end = row * width + len(reading.ids)
            for _, continuation in reading.requests:
                places += range(end - len(continuation), end)
                targets += continuation
        count = len(targets)
        size = CHUNK_ROWS  # doubled, so that few shapes are compiled; what is not filled costs nothing
        while size < count:
            size *= 2
        padded = [np.pad(np.array(x, "int32"), (0, size - count)) for x in (places, targets)]
        weights = (np.arange(size) < count).astype("float32")
        scored = self._score(ids, *padded, weights)
        return (ops.convert_to_numpy(x)[:count].astype("float64") for x in scored)

    def _score_tokens(self, ids, places, targets, weights):
        """Args: ids (B, T). places (N,): which of the B * T positions predict. targets, weights: (N,)."""
        states = self.view(ids, training=False)["head_1"]
        states = ops.reshape(states, (-1, states.shape[-1]))
        states = ops.take(states, places, axis=0)
        return score_rows(targets, states, weights, self.unembedding)


def _readings(requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[_Reading]:
    """What has to be read, the longest first."""
    found: dict[tuple[int, ...], _Reading] = {}
    for number, (context, continuation) in enumerate(requests):
        ids = (*context, *continuation[:-1])
        found.setdefault(ids, _Reading(ids=ids, requests=[])).requests.append((number, continuation))
    return sorted(found.values(), key=lambda reading: -len(reading.ids))


def _passes(readings: list[_Reading]) -> list[tuple[int, int, list[_Reading]]]:
    """(rows, width, what is read) of every pass: few shapes, and little padding."""
    if not readings:
        return []
    lengths = np.array([len(reading.ids) for reading in readings])
    widths = bucket_lengths(lengths, WIDTHS)
    bucket = np.searchsorted(widths, lengths)
    passes = []
    for place, width in reversed(list(enumerate(widths.tolist()))):
        inside = [reading for reading, own in zip(readings, bucket, strict=True) if own == place]
        rows = min(max(PASS_TOKENS // width, 1), len(inside))
        passes += [(rows, width, inside[at : at + rows]) for at in range(0, len(inside), rows)]
    return passes
