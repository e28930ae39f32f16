"""Generation one pass at a time: what a server that streams, or lets answers come and go, runs in place of `generate`.

    prefill    prompts                            -> the first token of every answer, and its state
    step       state, room, how to choose         -> 1 to K tokens more of every answer, and its state

The state is tensors that the caller hands on: the tokens in the slots of their positions, where every row stands, and the
keys and values, cache_000, cache_001, ... In each of them a row of the batch is a row, so rows may be taken out and put
together, and in those with slots (the last axis but one of the cache, the last of `ids`) zeros may be added behind. The
passes are those of `generate`, so the tokens are as well, whoever else is in the batch.

B rows, S slots, K = 1 + number of heads, R >= K tokens of a row that a pass reads.
"""

from typing import Any

import keras

from keras_mtp import backend
from keras_mtp.export.in_graph import NO_TOKEN, InGraph, checked, len_of
from keras_mtp.generation.cache import at_slots
from keras_mtp.generation.decoding import Rows
from keras_mtp.generation.fixed_shape import fixed_multiple

CHOOSING = {
    "stop_ids": ("int32", 1),
    "uniforms": ("float32", 2),
    "temperature": ("float32", 1),
    "top_p": ("float32", 1),
}


class Stepwise:
    """Two functions for a `tf.function` each.

    Args:
        in_graph: of the model, which brings the passes.
    """

    def __init__(self, in_graph: InGraph):
        self.in_graph, self.said_per_pass = in_graph, in_graph.drafting.said_per_pass
        self._cache: Any = None  # the structure of one, known when `prefill` has been traced

    def signatures(self) -> dict[str, Any]:
        """Both as concrete functions, `prefill` and `step`."""
        tf = backend.tensorflow()

        def spec(name, dtype, *shape):
            return tf.TensorSpec(shape, dtype, name)

        choosing = [spec(name, dtype, *[None] * rank) for name, (dtype, rank) in CHOOSING.items()]
        choosing[1] = spec("uniforms", "float32", None, self.in_graph.width)
        room = spec("room", "int32", None)
        prompts = [spec("token_ids", "int32", None, None), spec("lengths", "int32", None), room]
        prefill = traced(self.prefill, [*prompts, *choosing])
        state = [
            spec(name, x.dtype, None, *x.shape[1:])
            for name, x in prefill.structured_outputs.items()
            if name in ("ids", "at") or name.startswith("cache_")
        ]
        names = [x.name for x in state]

        def step(room, stop_ids, uniforms, temperature, top_p, speculate, *state):
            return self.step(
                dict(zip(names, state, strict=True)), room, stop_ids, uniforms, temperature, top_p, speculate
            )

        return {
            "prefill": prefill,
            "step": traced(step, [room, *choosing, spec("speculate", "bool"), *state]),
        }

    def prefill(self, token_ids, lengths, room, stop_ids, uniforms, temperature, top_p) -> dict[str, Any]:
        """Reads prompts, and says the first token of every answer.

        Args:
            token_ids: int32 (B, T), padded on the right with whatever. lengths: int32 (B,), 1 to T, of the prompts.
            room: int32 (B,), how many tokens each answer may have; the state has room for the largest.
            stop_ids: int32 (N,), which end an answer.
            uniforms: float32 (B, R), the numbers that the next R tokens of a row are drawn by; here the first alone is used.
            temperature: float32 (B,); 0 for the likeliest token. top_p: float32 (B,).

        Returns:
            As `step`, and `logits`, float32 (B, V), of the first tokens. The rows may be more than B: a step wants 1 or a
            multiple of them. Those behind have no room.
        """
        tf, graph = backend.tensorflow(), self.in_graph
        rows, lengths = graph.begun(token_ids, lengths, room)
        state, cache = graph.read(rows, lengths)
        more = len_of(rows.at) - len_of(token_ids)
        choosing = [
            tf.pad(x, [[0, more], *[[0, 0]] * (len(x.shape) - 1)]) for x in (uniforms, temperature, top_p)
        ]
        after, cache = graph.drafting.first(state, stop_ids, _draws(rows, *choosing), rows, cache)
        logits = tf.cast(graph.drafting.forward.logits(state)[:, 0], "float32")
        return self._told(rows, after, cache) | {"logits": logits}

    def step(self, state, room, stop_ids, uniforms, temperature, top_p, speculate) -> dict[str, Any]:
        """One pass.

        Args:
            state: of `prefill` or `step`, in rows 1 or a multiple of what `fixed_multiple` says.
            room: int32 (B,), how many tokens each answer may still have: as the last call said, or 0 to end it.
            stop_ids, uniforms, temperature, top_p: as for `prefill`.
            speculate: bool scalar, whether the heads' drafts are used; the tokens are the same without.

        Returns:
            `tokens`: int32 (B, K), what each answer got, its stop token included, `NO_TOKEN` behind. `room`: int32 (B,), 0
            where an answer has ended. And the state: `ids` (B, S), `at` (B,), `cache_000` ...
        """
        tf, graph = backend.tensorflow(), self.in_graph
        count, multiple = len_of(room), fixed_multiple(graph.width)
        message = f"a step must have 1 row, or a multiple of {multiple}."
        ids = checked(state["ids"], {message: (count == 1) | (count % multiple == 0)})
        # The histogram is the caller's to keep.
        tally = tf.zeros([1 + self.said_per_pass], "int32")
        rows = Rows(ids=ids[:, :, None], at=state["at"], room=room, histogram=tally)
        flat = [state[name] for name in sorted(state) if name.startswith("cache_")]
        cache = keras.tree.pack_sequence_as(self._cache, flat)
        draws = _draws(rows, uniforms, temperature, top_p)

        def passed(decoding, cache):
            after, cache = decoding.passes(1, stop_ids, draws, rows, cache)
            return after, cache

        def plain():
            after, trunk = passed(graph.plain, cache._replace(heads=[], reads={}))
            return after, cache._replace(trunk=trunk.trunk)

        after, cache = (
            tf.cond(speculate, lambda: passed(graph.drafting, cache), plain) if graph.has_heads else plain()
        )
        return self._told(rows, after, cache)

    def _told(self, before: Rows, after: Rows, cache) -> dict[str, Any]:
        tf = backend.tensorflow()
        self._cache = keras.tree.map_structure(lambda _: 0, cache)
        places = tf.range(self.said_per_pass)
        said = at_slots(after.ids, before.at + 1, self.said_per_pass)[:, :, 0]
        kept = {f"cache_{n:03d}": x for n, x in enumerate(keras.tree.flatten(cache))}
        return {
            "tokens": tf.where(places < (after.at - before.at)[:, None], said, NO_TOKEN),
            "room": after.room,
            "ids": after.ids[:, :, 0],
            "at": after.at,
        } | kept


def _draws(rows: Rows, uniforms, temperature, top_p):
    """(B, S, 3), as `choose` wants them: this pass's numbers (B, R) in the slots of the tokens they are for."""
    tf = backend.tensorflow()
    width = uniforms.shape[1]
    each = [tf.repeat(x[:, None], width, axis=1) for x in (temperature, top_p)]
    nothing = tf.zeros([*tf.unstack(tf.shape(rows.ids)[:2]), 3])
    return backend.write_rows(nothing, tf.stack([uniforms, *each], axis=-1), rows.at + 1)


def traced(function, inputs):
    """A concrete function of tensors as some `tf.TensorSpec` describe them."""
    tf = backend.tensorflow()
    return tf.function(function, autograph=False, input_signature=inputs).get_concrete_function()
