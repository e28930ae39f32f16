"""Prompts in, answers out, in the form they came: text is answered with text, token ids with token ids."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_mtp.data.encoding import encode_prompt, encode_raw
from keras_mtp.errors import UserError
from keras_mtp.generation.generator import NOTHING, Answers, Generator
from keras_mtp.generation.sampling import GREEDY, Sampling
from keras_mtp.generation.statistics import Statistics
from keras_mtp.generation.stream import TextStream

Prompt = str | Sequence[int]
OnText = Callable[[int, str], None]  # which prompt, new text of its answer


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of a generation; see `MTPCausalLM.generate`, which says what the fields mean."""

    max_new_tokens: int = 256
    stop_ids: Collection[int] | None = None
    stop: str | Sequence[str] = ()
    raw: bool = False
    speculate: bool = False
    sampling: Sampling = GREEDY
    on_text: OnText | None = None


class TextGenerator:
    """What is behind `MTPCausalLM.generate`: keeps the compiled loops from one call to the next.

    Args:
        model: an `MTPCausalLM`; its `tokenizer` reads and writes text.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self._generators: dict[tuple, Generator] = {}

    def __call__(self, prompts: Any, wish: Wish) -> tuple[Any, Statistics]:
        """The answers, in the form of the prompts, and what they cost."""
        if isinstance(prompts, np.ndarray):
            prompts = prompts.tolist()
        if _is_one(prompts):
            answers, statistics = self([prompts], wish)
            return answers[0], statistics
        if not prompts:
            return [], NOTHING
        if self.model.tokenizer is None and (wish.stop or wish.on_text):
            raise UserError(
                "`stop` and `on_text` are about text, which a model without a tokenizer does not write. Leave them "
                "out, or make the model with `tokenizer=`, as `MTPCausalLM.from_preset` does."
            )
        ids = [self._encoded(prompt, wish.raw) for prompt in prompts]
        generator = self._generator(wish)
        if not (wish.stop or wish.on_text):
            found = generator.answer(ids)
            texts = [
                self._decoded(answer, wish) if isinstance(prompt, str) else answer
                for prompt, answer in zip(prompts, found.tokens, strict=True)
            ]
            return texts, found.statistics
        stops = (wish.stop,) if isinstance(wish.stop, str) else wish.stop
        streams = [TextStream(lambda answer: self._decoded(answer, wish), stops) for _ in prompts]
        found = streamed(generator, ids, streams, wish.on_text)
        return [
            stream.text if isinstance(prompt, str) else stream.ids_of_text()
            for prompt, stream in zip(prompts, streams, strict=True)
        ], found.statistics

    def _decoded(self, answer: list[int], wish: Wish) -> str:
        return self.model.tokenizer.decode(answer, continues=wish.raw)

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

    def _generator(self, wish: Wish) -> Generator:
        stop_ids = wish.stop_ids
        if stop_ids is None:
            stop_ids = () if self.model.tokenizer is None else self.model.tokenizer.eos_ids
        asked: dict[str, Any] = {
            "stop_ids": stop_ids,
            "max_new_tokens": wish.max_new_tokens,
            "sampling": wish.sampling,
        }
        key = wish.speculate, wish.sampling.law  # what programs are made for
        if key not in self._generators:
            self._generators[key] = Generator(self.model, speculate=wish.speculate, **asked)
        return self._generators[key].asked(**asked)


def streamed(
    generator: Generator,
    ids: Sequence[Sequence[int]],
    streams: Sequence[TextStream],
    on_text: OnText | None = None,
) -> Answers:
    """Lets the answers run through their streams, each until it ends there."""

    def give(row: int, text: str) -> None:
        if on_text and text:
            on_text(row, text)

    def take(new: list[list[int]]) -> list[int]:
        for row, (stream, tokens) in enumerate(zip(streams, new, strict=True)):
            give(row, stream.add(tokens))
        return [row for row, stream in enumerate(streams) if stream.ended]

    answers = generator.answer(ids, on_tokens=take)
    for row, stream in enumerate(streams):
        give(row, stream.finish())
    return answers


def _is_one(prompts: Any) -> bool:
    """Whether this is one prompt and not a list of them."""
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], (int, np.integer)))
