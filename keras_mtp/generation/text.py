"""Prompts in, answers out, in the form they came: text is answered with text, token ids with token ids."""

from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np

from keras_mtp.data.encoding import encode_prompt, encode_raw
from keras_mtp.errors import UserError
from keras_mtp.generation.generator import Generator

Prompt = str | Sequence[int]

WIDTH_STEP = 32  # prompts are padded to a multiple of this many tokens, so that few shapes are compiled


class TextGenerator:
    """What is behind `MTPCausalLM.generate`: keeps the compiled loops from one call to the next.

    Args:
        model: an `MTPCausalLM`; its `tokenizer` reads and writes text.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self._generators: dict[tuple, Generator] = {}

    def __call__(
        self, prompts: Any, *, max_new_tokens: int, stop_ids: Collection[int] | None, raw: bool
    ) -> Any:
        """See `MTPCausalLM.generate`."""
        if isinstance(prompts, np.ndarray):
            prompts = prompts.tolist()
        if _is_one(prompts):
            return self([prompts], max_new_tokens=max_new_tokens, stop_ids=stop_ids, raw=raw)[0]
        if not prompts:
            return []
        ids = [self._encoded(prompt, raw) for prompt in prompts]
        generator = self._generator(stop_ids, max_new_tokens)
        width = -(-max(map(len, ids)) // WIDTH_STEP) * WIDTH_STEP
        answers = generator(ids, pad_to=width)
        return [
            self.model.tokenizer.decode(answer) if isinstance(prompt, str) else answer
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _encoded(self, prompt: Prompt, raw: bool) -> list[int]:
        if isinstance(prompt, str):
            if self.model.tokenizer is None:
                raise UserError(
                    "A model without a tokenizer takes token ids only. Received: a text. Give token ids, or make the "
                    "model with `tokenizer=`, as `MTPCausalLM.from_preset` does."
                )
            if not prompt.strip():
                raise UserError(f"`prompt` must not be empty. Received: {prompt!r}. Write what to answer.")
            return (encode_raw if raw else encode_prompt)(prompt, self.model.tokenizer)
        ids = [int(token) for token in prompt]
        size = self.model.backbone.vocabulary_size
        if not ids or min(ids) < 0 or max(ids) >= size:
            raise UserError(
                f"A prompt of token ids must hold at least one, each from 0 to {size - 1}. Received: {ids[:8]}."
            )
        return ids

    def _generator(self, stop_ids: Collection[int] | None, max_new_tokens: int) -> Generator:
        if stop_ids is None:
            stop_ids = () if self.model.tokenizer is None else self.model.tokenizer.eos_ids
        key = tuple(stop_ids), max_new_tokens
        if key not in self._generators:
            self._generators[key] = Generator(self.model, stop_ids=stop_ids, max_new_tokens=max_new_tokens)
        return self._generators[key]


def _is_one(prompts: Any) -> bool:
    """Whether this is one prompt and not a list of them."""
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], (int, np.integer)))
