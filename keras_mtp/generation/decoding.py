"""The passes of decoding, compiled: read prompts, then pass after pass until every answer has ended.

    tokens of a pass    [ certain | draft 2 ... draft K | any ]     R of them per row, from the certain one's slot on
    yields              the certain token's successor, and one more for every draft that was right

Plain decoding is K = 1. In *exact mode* it, too, runs R tokens per row: then every token of the answer, whoever drafted
it, comes out of products of the same shape, whose rows depend neither on their place nor on their neighbours, and the
answer is the same to the last bit (test_fixed_shape.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_mtp import backend
from keras_mtp.at_once import PREFILL
from keras_mtp.generation.acceptance import agreeing, yielded
from keras_mtp.generation.cache import Cache, at_slots
from keras_mtp.generation.cached_forward import CachedForward, Weights
from keras_mtp.generation.drafting import drafted
from keras_mtp.generation.merged_kernels import MergedKernels

Choose = Callable[[Any, Any], Any]  # logits (B, R, V), uniforms (B, R) -> token ids (B, R)


class Rows(NamedTuple):
    """Where every row of a batch stands.

    Args:
        ids: int tensor (B, S, 1), every token in the slot of its position, and behind the last one the drafts. at: int
            tensor (B,), slot of the last one, which no pass has read yet. room: int tensor (B,), how many more the answer may
            take; 0 where it has ended. histogram: int tensor (K + 1,), passes of a row by the number of tokens they yielded;
            0 where the row had ended.
    """

    ids: Any
    at: Any
    room: Any
    histogram: Any


class Decoding:
    """One way of decoding with a model: how many drafts, and how many tokens per row in a pass.

    Args:
        model: the `MTPCausalLM`.
        heads: draft with the model's heads; without, K = 1.
        width: R, at least K.
        choose: what the model says, given its logits.
        compiled: make each of the passes a program. False leaves them to the graph of whoever calls them, TensorFlow's for
            an export, in which the batch and the cache may have free sizes.
        merged: as for `CachedForward`.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        heads: bool,
        width: int,
        choose: Choose,
        compiled: bool = True,
        merged: MergedKernels | None = None,
    ):
        self.forward = CachedForward(model, heads=heads, merged=merged)
        self.said_per_pass, self.width, self.choose = 1 + len(self.forward.heads), width, choose
        # Slots from a row's `at` on that a pass may touch: R tokens and what they say; or K, and K - 1 drafts behind the last.
        self.reach = max(width + 1, 2 * self.said_per_pass)

        def program(function: Callable, cache: int) -> Callable:
            """As a program; `cache` is the place of the argument whose memory the new cache may take."""
            if not compiled:
                return function
            return backend.compiled(function, self.forward.variables, xla=True, consumed=(cache,))

        self.one_pass = backend.recorded(self._pass)
        self.prefill = program(self._prefill, 4)
        self.first = program(self._first, 4)
        self.passes = program(self._passes, 4)
        self.read_prefix = program(self.forward.read_prefix, 0)
        self.admit = program(_admit, 4)

    def _prefill(self, ids, done, lengths, state, cache: Cache):
        """Reads `PREFILL` tokens of every prompt, from the `done`-th on.

        Args:
            ids: int tensor (B, S, 1), with the prompts. lengths: int tensor (B,), of the whole prompts.
            state: tensor (B, 1, D): that at the last token of every prompt whose end has been read.

        Returns:
            `(state, cache)`.
        """
        weights = self.forward.weights()
        start = ops.zeros_like(lengths) + self.forward.prefix_length + done
        filled = cache.filled(ops.max(start) + PREFILL)
        states, filled = self.forward.step(weights, at_slots(ids, start, PREFILL)[:, :, 0], start, filled)
        for k in self.forward.far:
            _, filled = self.forward.head(k, weights, ids, start, PREFILL, filled)
        last = lengths - 1 - done
        here = ops.logical_and(last >= 0, last < PREFILL)[:, None, None]
        state = ops.where(here, at_slots(states, ops.clip(last, 0, PREFILL - 1), 1), state)
        return state, cache.after(filled)

    def _first(self, state, stop_ids, uniforms, rows: Rows, cache: Cache):
        """The first token of every answer, from the state at the prompt's last one."""
        said = self.choose(self.forward.logits(state), at_slots(uniforms, rows.at + 1, 1))
        filled = cache.filled(ops.max(rows.at) + self.reach)
        advanced = self._advanced(rows, said, ops.zeros_like(rows.at), stop_ids)
        rows = advanced._replace(histogram=rows.histogram)  # it cost no pass
        if self.forward.heads:
            rows, filled = self._drafted(self.forward.weights(), rows, filled)
        return rows, cache.after(filled)

    def _passes(self, budget, stop_ids, uniforms, rows: Rows, cache: Cache):
        """Up to `budget` passes; fewer if all rows have ended, or if one has come near the end of the cache."""
        weights, furthest = self.forward.weights(), cache.slots - self.reach

        def running(i, rows, cache):
            active = ops.logical_and(ops.any(rows.room > 0), ops.max(rows.at) <= furthest)
            return ops.logical_and(i < budget, active)

        def body(i, rows, cache):
            filled = cache.filled(ops.max(rows.at) + self.reach)
            rows, filled = self.one_pass(weights, stop_ids, uniforms, rows, filled)
            return i + 1, rows, cache.after(filled)

        done = ops.convert_to_tensor(0, "int32")
        _, rows, cache = ops.while_loop(running, body, (done, rows, cache))
        return rows, cache

    def _pass(self, weights: Weights, stop_ids, uniforms, rows: Rows, cache: Cache):
        token_ids = at_slots(rows.ids, rows.at, self.width)[:, :, 0]
        states, cache = self.forward.step(weights, token_ids, rows.at, cache)
        # All R are chosen, then cut, for the same reason for which R are computed.
        said = self.choose(self.forward.logits(states), at_slots(uniforms, rows.at + 1, self.width))
        said, drafts = said[:, : self.said_per_pass], token_ids[:, 1 : self.said_per_pass]
        rows = self._advanced(rows, said, agreeing(drafts, said), stop_ids)
        return self._drafted(weights, rows, cache) if self.forward.heads else (rows, cache)

    def _advanced(self, rows: Rows, said, right, stop_ids) -> Rows:
        """`rows` with what a pass said in it."""
        count, ended = yielded(said, right, rows.room, stop_ids)
        tally = ops.equal(ops.arange(rows.histogram.shape[0], dtype="int32")[None], count[:, None])
        return Rows(
            ids=backend.write_rows(rows.ids, said[:, :, None], rows.at + 1),
            at=rows.at + count,
            room=ops.where(ended, 0, rows.room - count),
            histogram=rows.histogram + ops.sum(ops.cast(tally, "int32"), axis=0),
        )

    def _drafted(self, weights: Weights, rows: Rows, cache: Cache):
        ids, cache = drafted(self.forward, weights, rows.ids, rows.at, cache)
        return rows._replace(ids=ids), cache


def _admit(places, newcomers: Rows, read: Cache, rows: Rows, cache: Cache):
    """Some rows and what is kept of them replaced by those of another batch; `places`: int tensor, no place twice."""
    ids, at, room = (
        backend.put_rows(old, places, new) for old, new in zip(rows[:3], newcomers[:3], strict=True)
    )
    histogram = rows.histogram + newcomers.histogram
    cache = keras.tree.map_structure(lambda old, new: backend.put_rows(old, places, new), cache, read)
    return Rows(ids=ids, at=at, room=room, histogram=histogram), cache
