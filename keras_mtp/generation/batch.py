"""A batch of prompts on its way: read in chunks, then passes, in a cache that is given room as it fills."""

import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
from keras import ops

from keras_mtp import distribution
from keras_mtp.at_once import AHEAD, PREFILL, cache_slots, slots_for
from keras_mtp.generation.decoding import Decoding, Rows
from keras_mtp.generation.sampling import Sampling
from keras_mtp.generation.statistics import Statistics

FOREVER = 2**30

# New tokens of every row in, the rows that shall end out.
OnTokens = Callable[[list[list[int]]], Collection[int]]


class Batch:
    """Prompts and the answers to them, as far as they have come.

    Args:
        decoding: how to decode. rows: B, to which the batch is filled up with rows that have ended.
        prompts: token ids, none empty. pad_to: int. Leave room for prompts of this length.
        max_new_tokens: int, at least 1. stop_ids: int array (N,). sampling: whose numbers to use.
        numbers: of the prompts, among all that are sampled for; 0, 1, ... by default.
    """

    def __init__(
        self,
        decoding: Decoding,
        prompts: Sequence[Sequence[int]],
        *,
        rows: int,
        pad_to: int = 0,
        max_new_tokens: int,
        stop_ids: np.ndarray,
        sampling: Sampling,
        numbers: Sequence[int] = (),
    ):
        self.decoding, self.stop_ids, self.sampling = decoding, stop_ids, sampling
        self.count = len(prompts)
        self.numbers = np.arange(rows)
        self.numbers[: len(numbers)] = numbers
        filler = list(prompts[0]) if prompts else [0]
        prompts = [list(prompt) for prompt in prompts] + [filler] * (rows - len(prompts))
        self.lengths = np.array([len(prompt) for prompt in prompts], "int32")
        self.prefix_length = decoding.forward.prefix_length
        longest = max(pad_to, *self.lengths.tolist(), 1)
        room = np.full(rows, max_new_tokens, "int32")
        room[self.count :] = 0
        slots = cache_slots(self.prefix_length, longest, min(max_new_tokens, AHEAD), decoding.reach)
        ids = np.zeros((rows, slots, 1), "int32")
        for row, prompt in zip(ids[:, self.prefix_length :, 0], prompts, strict=True):
            row[: len(prompt)] = prompt
        self.rows = Rows(
            ids=ids,
            at=self.prefix_length + self.lengths - 1,
            room=room,
            histogram=np.zeros(1 + decoding.said_per_pass, "int32"),
        )
        self.uniforms = self._uniforms(slots)
        decoding.forward.merged.make()
        self.cache = decoding.forward.empty_cache(rows, slots)
        self.began, self.prompt_seconds = time.perf_counter(), 0.0

    def read(self) -> None:
        """Reads the prefix and the prompts, and says the first token of every answer."""
        decoding, backbone = self.decoding, self.decoding.forward.backbone
        # Never one cache beside another: each may be most of what is left of the memory.
        self.cache = decoding.read_prefix(self.cache)
        state = ops.zeros((len(self.lengths), 1, backbone.hidden_dim), backbone.compute_dtype)
        for done in range(0, int(self.lengths.max()), PREFILL):
            state, self.cache = decoding.prefill(
                self.rows.ids, np.int32(done), self.lengths, state, self.cache
            )
        self.rows, self.cache = decoding.first(state, self.stop_ids, self.uniforms, self.rows, self.cache)
        self.prompt_seconds = self._elapsed()

    def admit(self, newcomers: "Batch", places: Sequence[int]) -> None:
        """Gives rows that have ended to another batch, which has been read: a place for each of its rows."""
        if more := self.cache.slots - newcomers.cache.slots:
            newcomers._lengthen(more)
        for ours, theirs in (
            (self.lengths, newcomers.lengths),
            (self.numbers, newcomers.numbers),
            (self.uniforms, newcomers.uniforms),
        ):
            ours[places] = theirs
        self.count = len(self.lengths)
        self.rows, self.cache = self.decoding.admit(
            np.array(places, "int32"), newcomers.rows, newcomers.cache, self.rows, self.cache
        )

    @property
    def running(self) -> bool:
        """Whether an answer has not ended."""
        return len(self.ended) < len(self.lengths)

    @property
    def ended(self) -> list[int]:
        """The rows whose answers have ended."""
        return np.flatnonzero(_numpy(self.rows.room) <= 0).tolist()

    def run(self, passes: int | None = None) -> None:
        """Up to `passes` passes; without a number until all answers have ended, or the cache is full."""
        self._make_room()
        budget = np.int32(FOREVER if passes is None else passes)
        self.rows, self.cache = self.decoding.passes(
            budget, self.stop_ids, self.uniforms, self.rows, self.cache
        )

    def continue_plainly(self, decoding: Decoding) -> None:
        """Goes on without the heads, with the same merged kernels."""
        self.decoding = decoding
        self.cache = self.cache._replace(heads=[], reads={})

    def end(self, rows: Collection[int]) -> None:
        """Lets some answers end where they are."""
        if rows:
            room = _numpy(self.rows.room).copy()
            room[list(rows)] = 0
            self.rows = self.rows._replace(room=room)

    def tokens(self) -> list[list[int]]:
        """The new tokens of every prompt so far, stop tokens left out."""
        ids, at = _numpy(self.rows.ids)[:, :, 0], _numpy(self.rows.at)
        stops = set(self.stop_ids.tolist())
        answers = []
        for row in range(self.count):
            answer = ids[row, self.prefix_length + self.lengths[row] : at[row] + 1].tolist()
            answers.append(answer[:-1] if answer and answer[-1] in stops else answer)
        return answers

    def statistics(self, *, speculated: bool) -> Statistics:
        """What it has cost so far."""
        new = _numpy(self.rows.at) + 1 - self.prefix_length - self.lengths
        return Statistics(
            tokens=int(new[: self.count].sum()),
            histogram=tuple(_numpy(self.rows.histogram)[1:].tolist()),
            prompt_seconds=self.prompt_seconds,
            seconds=self._elapsed() - self.prompt_seconds,
            speculated=speculated,
        )

    def _elapsed(self) -> float:
        _numpy(self.rows.at)  # waits for what has been started
        return time.perf_counter() - self.began

    def _make_room(self) -> None:
        """Gives the cache more slots where a row has come near its end."""
        slots = self.cache.slots
        needed = int(_numpy(self.rows.at).max()) + self.decoding.reach
        if needed <= slots:
            return
        self._lengthen(slots_for(needed) - slots)

    def _lengthen(self, more: int) -> None:
        """Gives the cache so many more slots."""
        self.cache = self.cache.padded(more)
        ids = ops.pad(self.rows.ids, [(0, 0), (0, more), (0, 0)])
        self.rows = self.rows._replace(ids=ids)
        self.uniforms = self._uniforms(self.cache.slots)

    def _uniforms(self, slots: int) -> np.ndarray:
        """(B, S): every new token's number in its slot."""
        uniforms = np.zeros((len(self.lengths), slots), "float32")
        for row, length in enumerate(self.lengths[: self.count] if self.sampling.temperature else ()):
            first = self.prefix_length + length
            uniforms[row, first:] = self.sampling.uniforms(int(self.numbers[row]), slots - first)
        return uniforms


def _numpy(x) -> np.ndarray:
    return distribution.active().whole(x) if not isinstance(x, np.ndarray) else x
