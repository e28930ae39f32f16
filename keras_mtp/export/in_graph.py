"""Generation as one TensorFlow graph, batch and lengths free: what a server runs in place of `Generator` and `Batch`.

    token_ids, lengths    read the prefix, then the prompts, PREFILL tokens a time     -> the first token
                          passes with drafts, STRETCH at a time, while they pay
                          passes without, until every answer has ended                 -> tokens, lengths, accepted

The passes are `Decoding`'s own, traced into this graph: the tokens are those of `MTPCausalLM.generate(speculate=True)`.
Other than there the cache has room for all of `max_new_tokens` from the start, and XLA compiles nothing, since it would
compile again for every size and TensorFlow Serving often lacks it.

B rows, T tokens of the longest prompt, P prefix places, K = 1 + number of heads.
"""

from typing import Any

import keras
from keras import ops

from keras_mtp import backend
from keras_mtp.at_once import CHUNK, PREFILL
from keras_mtp.export.choose import choose
from keras_mtp.generation.batch import FOREVER
from keras_mtp.generation.decoding import Decoding, Rows
from keras_mtp.generation.fixed_shape import fixed_multiple, fixed_shape
from keras_mtp.generation.generator import STRETCH
from keras_mtp.generation.merged_kernels import MergedKernels
from keras_mtp.generation.statistics import pays

NO_TOKEN = -1  # behind the end of an answer


class InGraph:
    """Answers batches of prompts inside a `tf.function`.

    Args:
        model: an `MTPCausalLM`, its weights as they are now.
    """

    def __init__(self, model: keras.Model):
        self.backbone, self.has_heads = model.backbone, bool(model.heads)
        self.width = fixed_shape(1, 1 + len(model.heads))[1] if self.has_heads else 1
        merged = MergedKernels(model.lora)
        self.drafting, self.plain = (
            Decoding(model, heads=heads, width=self.width, choose=choose, compiled=False, merged=merged)
            for heads in (self.has_heads, False)
        )
        self.variables = self.drafting.forward.variables

    def generate(self, token_ids, lengths, max_new_tokens, stop_ids) -> dict[str, Any]:
        """The likeliest continuations.

        Args:
            token_ids: int32 (B, T), padded on the right with whatever.
            lengths: int32 (B,), 1 to T, of the prompts.
            max_new_tokens: int32 scalar, longest answer. stop_ids: int32 (S,), which end an answer; may be none.

        Returns:
            `tokens`: int32 (B, M), the answers without their stop token, M the longest's length; `NO_TOKEN` behind an end.
            `lengths`: int32 (B,), of the answers. `accepted`: int32 (K,), at n the passes (of one row) in which n drafts
            were kept; tokens a pass are `sum((n + 1) * accepted) / sum(accepted)`.
        """
        tf = backend.tensorflow()
        room = tf.fill([tf.shape(token_ids)[0]], max_new_tokens)
        rows, lengths = self.begun(token_ids, lengths, room)
        starts = rows.at + 1
        rows = self._answered(rows, lengths, stop_ids)
        return _answers(rows, starts, len_of(token_ids), stop_ids, self.drafting.said_per_pass)

    def begun(self, token_ids, lengths, room) -> tuple[Rows, Any]:
        """Rows of prompts that nothing has been read of, and their lengths, checked and padded to a fixed shape.

        Args:
            token_ids: int32 (B, T). lengths, room: int32 (B,), room being how many tokens each answer may have.
        """
        tf = backend.tensorflow()
        count, prefix = len_of(token_ids), self.drafting.forward.prefix_length
        token_ids = self._checked(token_ids, lengths, room)
        more = tf.where(count <= 1, 1, _up(count, fixed_multiple(self.width))) - count  # copies of nothing
        width = _up(tf.shape(token_ids)[1], PREFILL)
        slots = _up(prefix + width + tf.reduce_max(room) + self.drafting.reach, CHUNK)
        behind = slots - prefix - tf.shape(token_ids)[1]
        lengths = tf.pad(lengths, [[0, more]], constant_values=1)
        rows = Rows(
            ids=tf.pad(token_ids, [[0, more], [prefix, behind]])[:, :, None],
            at=prefix + lengths - 1,
            room=tf.pad(room, [[0, more]]),
            histogram=tf.zeros([1 + self.drafting.said_per_pass], "int32"),
        )
        return rows, lengths

    def read(self, rows: Rows, lengths):
        """Reads the prefix and the prompts: `(state, cache)`, the states (B, 1, D) at the prompts' last tokens."""
        tf = backend.tensorflow()
        drafting, size = self.drafting, tf.shape(rows.ids)
        cache = drafting.read_prefix(drafting.forward.empty_cache(size[0], size[1]))
        state = ops.zeros((size[0], 1, self.backbone.hidden_dim), self.backbone.compute_dtype)

        def more(done, state, cache):
            return done + PREFILL, *drafting.prefill(rows.ids, done, lengths, state, cache)

        longest = tf.reduce_max(lengths)
        return tf.while_loop(lambda done, *_: done < longest, more, (0, state, cache))[1:]

    def _answered(self, rows: Rows, lengths, stop_ids) -> Rows:
        """All of `Generator.answer`'s loop."""
        tf = backend.tensorflow()
        drafting = self.drafting
        state, cache = self.read(rows, lengths)
        draws = tf.zeros([*tf.unstack(tf.shape(rows.ids)[:2]), 3])  # greedy
        rows, cache = drafting.first(state, stop_ids, draws, rows, cache)
        if self.has_heads:

            def paying(rows, cache):
                return tf.logical_and(tf.reduce_any(rows.room > 0), _pay(rows.histogram[1:]))

            rows, cache = tf.while_loop(
                paying,
                lambda rows, cache: drafting.passes(STRETCH, stop_ids, draws, rows, cache),
                (rows, cache),
            )
        cache = cache._replace(heads=[], reads={})
        return self.plain.passes(FOREVER, stop_ids, draws, rows, cache)[0]

    def _checked(self, token_ids, lengths, room):
        """`token_ids`, 0 in place of padding."""
        tf = backend.tensorflow()
        longest = tf.shape(token_ids)[1]
        token_ids = tf.where(tf.range(longest) < lengths[:, None], token_ids, 0)
        checks = {
            "`lengths` must be 1 to the width of `token_ids`.": (lengths >= 1) & (lengths <= longest),
            "`max_new_tokens` must be at least 0.": room >= 0,
        }
        return self.known(checked(token_ids, checks))

    def known(self, token_ids):
        """`token_ids`, refused where the vocabulary has not all of them."""
        size = self.backbone.vocabulary_size
        return checked(
            token_ids, {f"`token_ids` must be 0 to {size - 1}.": (token_ids >= 0) & (token_ids < size)}
        )


def checked(x, conditions: dict[str, Any]):
    """`x`, computed only if all of some tensors are true everywhere; else the graph fails with the key as its message."""
    tf = backend.tensorflow()
    checks = [tf.debugging.Assert(tf.reduce_all(good), [message]) for message, good in conditions.items()]
    with tf.control_dependencies(checks):  # before anything else stumbles over it
        return tf.identity(x)


def len_of(x):
    """Its first dimension, as a tensor."""
    return backend.tensorflow().shape(x)[0]


def _answers(rows: Rows, starts, count, stop_ids, said_per_pass: int) -> dict[str, Any]:
    """What `InGraph.generate` returns; `starts`: int32 (B,), the slots of the first new tokens."""
    tf = backend.tensorflow()
    ids, starts, at = rows.ids[:count, :, 0], starts[:count], rows.at[:count]
    last = tf.gather(ids, at, batch_dims=1)
    stopped = tf.reduce_any(last[:, None] == stop_ids, axis=1) & (at >= starts)
    lengths = at + 1 - starts - tf.cast(stopped, "int32")
    places = tf.range(tf.maximum(tf.reduce_max(lengths), 0))
    tokens = tf.gather(ids, tf.minimum(starts[:, None] + places, tf.shape(ids)[1] - 1), batch_dims=1)
    return {
        "tokens": tf.where(places < lengths[:, None], tokens, NO_TOKEN),
        "lengths": lengths,
        "accepted": rows.histogram[1 : 1 + said_per_pass],
    }


def _pay(accepted):
    """Whether drafts are to go on, by the passes (K,) in which so many were kept."""
    tf = backend.tensorflow()
    passes = tf.reduce_sum(accepted)
    tokens = tf.reduce_sum(accepted * tf.range(1, accepted.shape[0] + 1))
    return pays(passes, tokens / tf.maximum(passes, 1))


def _up(size, multiple: int):
    return -(-size // multiple) * multiple
