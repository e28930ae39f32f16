"""Held-out loss and top-1 of every head, example by example."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from keras import ops

from keras_mtp import backend, distribution
from keras_mtp.data.encoding import Encoded
from keras_mtp.data.lengths import bucket_lengths, shared_tokens
from keras_mtp.data.targets import head_targets, pad
from keras_mtp.losses import score_rows
from keras_mtp.models.mtp_causal_lm import MTPCausalLM

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

    @backend.traced_for_fit()  # between the steps of `fit` and after it, the same weights have the same loss
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
