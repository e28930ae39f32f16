"""Batched greedy decoding over a key-value cache, the whole loop compiled where the backend can.

    slots      [ prefix | prompt, padded on the right | new tokens ]
    positions    0..P-1   P..P+len-1 of each row        P+len, P+len+1, ...

A row's padding slots are never visible, and its new tokens continue its own positions.
"""

from collections.abc import Collection, Sequence

import keras
import numpy as np
from keras import ops

from keras_mtp import backend
from keras_mtp.generation.cached_forward import CachedForward


class Generator:
    """Continues prompts greedily with an `MTPCausalLM`.

    Args:
        model: the model; its prefix is in front of every prompt.
        stop_ids: token ids that end an answer. They are not part of it.
        max_new_tokens: int. Longest answer.

    Raises:
        ValueError: `max_new_tokens` below 1, or no stop ids.
    """

    def __init__(self, model: keras.Model, *, stop_ids: Collection[int], max_new_tokens: int):
        if max_new_tokens < 1:
            raise ValueError(
                f"`max_new_tokens` must be at least 1. Received: max_new_tokens={max_new_tokens}"
            )
        if not stop_ids:
            raise ValueError("`stop_ids` must hold at least one token id. Received an empty collection.")
        self.stop_ids = np.array(sorted(stop_ids), "int32")
        self.max_new_tokens = max_new_tokens
        self.forward = CachedForward(model)
        self._decode = backend.compiled(self._greedy, model.variables)

    def __call__(self, prompts: Sequence[Sequence[int]], pad_to: int | None = None) -> list[list[int]]:
        """Continues a batch of prompts.

        Args:
            prompts: token ids of every prompt, none empty.
            pad_to: pad the prompts to this many tokens, so that batches share one compiled shape.

        Returns:
            The new tokens of every prompt, without the stop token.
        """
        width = max(pad_to or 0, *(len(prompt) for prompt in prompts))
        token_ids = np.zeros((len(prompts), width), "int32")
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in prompts], "int32")
        tokens = ops.convert_to_numpy(self._decode(token_ids, lengths))
        return [self._until_stop(row) for row in tokens.tolist()]

    def _until_stop(self, tokens: list[int]) -> list[int]:
        stops = set(self.stop_ids.tolist())
        return tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))]

    def _greedy(self, token_ids, lengths):
        """(B, T) and (B,) -> (B, max_new_tokens): new tokens; after a stop token, stop tokens."""
        forward, new = self.forward, self.max_new_tokens
        batch_size, first_slot = ops.shape(token_ids)[0], forward.prefix_length + ops.shape(token_ids)[1]
        cache = forward.empty_cache(batch_size, first_slot + new)
        slots = ops.arange(first_slot + new, dtype="int32")[None, None]
        prompt_end = ops.reshape(forward.prefix_length + lengths, (-1, 1, 1))
        in_prompt = slots < prompt_end

        def is_stop(token):
            return ops.any(ops.equal(token[:, None], ops.convert_to_tensor(self.stop_ids)[None]), axis=-1)

        def running(i, token, tokens, cache):
            return ops.logical_and(i < new, ops.logical_not(ops.all(is_stop(token))))

        def body(i, token, tokens, cache):
            slot = first_slot + i - 1
            visible = ops.logical_or(in_prompt, ops.logical_and(slots >= first_slot, slots <= slot))
            positions = prompt_end[:, :, 0] + i - 1
            hidden, cache = forward.step(token[:, None], positions, visible, cache, slot)
            following = _argmax(forward.logits(hidden[:, 0]))
            token = ops.where(is_stop(token), token, following)
            return i + 1, token, ops.slice_update(tokens, [0, i], token[:, None]), cache

        hidden, cache = forward.prefill(token_ids, lengths, cache)
        token = _argmax(forward.logits(hidden))
        tokens = ops.broadcast_to(ops.convert_to_tensor(self.stop_ids[:1]), (batch_size, new))
        tokens = ops.slice_update(tokens, [0, 0], token[:, None])
        return ops.while_loop(running, body, (ops.convert_to_tensor(1, "int32"), token, tokens, cache))[2]


def _argmax(logits):
    return ops.cast(ops.argmax(logits, axis=-1), "int32")
