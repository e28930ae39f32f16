"""Continues prompts with a model, plainly or with the drafts of its heads."""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import keras
import numpy as np

from keras_mtp.at_once import ADMITTED, cache_slots
from keras_mtp.generation.batch import Batch, OnTokens
from keras_mtp.generation.decoding import Decoding
from keras_mtp.generation.fixed_shape import fixed_shape
from keras_mtp.generation.merged_kernels import MergedKernels
from keras_mtp.generation.refilling import refilled
from keras_mtp.generation.sampling import GREEDY, Sampling
from keras_mtp.generation.statistics import Statistics, pays
from keras_mtp.journal import Journal

STRETCH = 16  # passes between two looks at what drafts gave
PIECE = 8  # prompts per row that are answered before they are written down


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came out of a generation.

    Args:
        tokens: the new tokens of every prompt, without the stop token. statistics: what they cost.
    """

    tokens: list[list[int]]
    statistics: Statistics


NOTHING = Statistics(tokens=0, histogram=(), prompt_seconds=0.0, seconds=0.0, speculated=False)


class Generator:
    """Continues prompts with an `MTPCausalLM`.

    Args:
        model: the model; its prefix is in front of every prompt.
        stop_ids: token ids that end an answer. They are not part of it.
        max_new_tokens: int. Longest answer.
        speculate: draft with the model's heads, in exact mode: the same tokens as `exact` alone, in fewer passes. Drafts
            that turn out not to pay are given up.
        exact: run every pass over a fixed number of tokens, so that a token depends neither on where in the pass it is
            computed nor on the other rows. Plain decoding without it is faster, and differs in the last bits.
        sampling: how tokens are chosen; the likeliest by default.
        rows: pad every batch to this many rows, so that batches of all sizes are computed alike.

    Raises:
        ValueError: `max_new_tokens` below 0, or no stop ids.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        stop_ids: Collection[int],
        max_new_tokens: int,
        speculate: bool = False,
        exact: bool = False,
        sampling: Sampling = GREEDY,
        rows: int = 1,
    ):
        self._ask(stop_ids, max_new_tokens, sampling)
        self.model = model
        self.speculate = speculate and bool(model.heads)
        self.exact = exact or self.speculate
        self.rows = rows
        self._merged = MergedKernels(model.lora)
        self._decodings: dict[tuple[bool, int], Decoding] = {}

    def asked(self, *, stop_ids: Collection[int], max_new_tokens: int, sampling: Sampling) -> Self:
        """The same programs with another wish; `sampling` is to be of the same law."""
        other = copy.copy(self)
        other._ask(stop_ids, max_new_tokens, sampling)
        return other

    def _ask(self, stop_ids: Collection[int], max_new_tokens: int, sampling: Sampling) -> None:
        if max_new_tokens < 0:
            raise ValueError(
                f"`max_new_tokens` must be at least 0. Received: max_new_tokens={max_new_tokens}"
            )
        if not stop_ids:
            raise ValueError("`stop_ids` must hold at least one token id. Received an empty collection.")
        self.stop_ids = np.array(sorted(stop_ids), "int32")
        self.max_new_tokens, self.sampling = max_new_tokens, sampling

    def __call__(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Continues a batch of prompts.

        Args:
            prompts: token ids of every prompt, none empty.

        Returns:
            The new tokens of every prompt, without the stop token.
        """
        return self.answer(prompts).tokens

    def answer(self, prompts: Sequence[Sequence[int]], *, on_tokens: OnTokens | None = None) -> Answers:
        """As a call, with what it cost.

        Args:
            prompts: as in a call.
            on_tokens: is given the new tokens of every row, stop tokens left out, every `STRETCH` passes; the rows that it
                returns end there.
        """
        if not self.max_new_tokens:
            return Answers(tokens=[[] for _ in prompts], statistics=NOTHING)
        rows, width = max(len(prompts), self.rows), 1
        if self.exact:
            rows, width = fixed_shape(rows, 1 + len(self.model.heads))
        batch = Batch(
            self._decoding(self.speculate, width),
            prompts,
            rows=rows,
            max_new_tokens=self.max_new_tokens,
            stop_ids=self.stop_ids,
            sampling=self.sampling,
        )
        batch.read()
        told, speculating = [0] * len(prompts), self.speculate
        while True:
            if on_tokens:
                tokens = batch.tokens()
                batch.end(on_tokens([row[n:] for row, n in zip(tokens, told, strict=True)]))
                told = [len(row) for row in tokens]
            if not batch.running:
                break
            so_far = batch.statistics(speculated=True)
            if speculating and not pays(so_far.passes, so_far.tokens_per_pass):
                batch.continue_plainly(self._decoding(False, width))
                speculating = False
            batch.run(STRETCH if on_tokens or speculating else None)
        return Answers(tokens=batch.tokens(), statistics=batch.statistics(speculated=speculating))

    def answer_all(self, prompts: Sequence[Sequence[int]], journal: Journal | None = None) -> list[list[int]]:
        """Continues any number of prompts, `rows` and at least `ADMITTED` at a time, plainly; see `refilling.py`.

        Args:
            prompts: token ids of every prompt, none empty. journal: answers that are in it are not made again.

        Returns:
            The new tokens of every prompt, without the stop token.
        """
        if not self.max_new_tokens or not prompts:
            return [[] for _ in prompts]
        journal = journal or Journal()
        new_batch = partial(
            Batch,
            self._decoding(False, 1),
            pad_to=max(map(len, prompts)),
            max_new_tokens=self.max_new_tokens,
            stop_ids=self.stop_ids,
            sampling=self.sampling,
        )
        answers: list[list[int]] = []
        for first in range(0, len(prompts), size := PIECE * self._rows_at_once):
            asked = list(prompts[first : first + size])
            answer = partial(refilled, new_batch, asked, rows=self._rows_at_once, first=first)
            answers += journal.piece(asked, answer)
        return answers

    def cache_shape(self, prompts: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Rows, and slots per row, of the largest key-value cache that `answer_all` can need."""
        longest = max(map(len, prompts))
        reach = self._decoding(False, 1).reach
        slots = cache_slots(self.model.prefix_length, longest, self.max_new_tokens, reach)
        return self._rows_at_once, slots

    @property
    def _rows_at_once(self) -> int:
        """Rows of the batch in which `answer_all` answers."""
        return max(self.rows, ADMITTED)

    def _decoding(self, heads: bool, width: int) -> Decoding:
        key = heads, width
        if key not in self._decodings:
            self._decodings[key] = Decoding(
                self.model, heads=heads, width=width, choose=self.sampling.choose, merged=self._merged
            )
        return self._decodings[key]
