"""The model's own answers in place of the data's: what heads that draft will have to guess.

A draft is accepted where it is what the model itself says next. The data's answers are other text, so heads trained on them
learn another distribution than the one they are judged by (Cai et al. 2024, Medusa, arXiv 2401.10774, section 2.3.2).
"""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_mtp.at_once import answered_rows
from keras_mtp.data.encoding import Encoded
from keras_mtp.generation.generator import Generator
from keras_mtp.journal import Journal


def own_answers(
    model: keras.Model,
    examples: Sequence[Encoded],
    *,
    count: int,
    seed: int,
    max_tokens: int,
    batch_size: int,
    journal: Journal | None = None,
) -> list[Encoded]:
    """Lets a model answer the examples' prompts greedily, by `head_1`.

    Args:
        model: an `MTPCausalLM` with its tokenizer.
        examples: encoded, each with a prompt before its last answer.
        count: answer at most so many examples, drawn by `seed`: all that a training will look at, and no more.
        max_tokens: longest example; an answer that would pass it is cut, and has no end token then.
        batch_size: prompts answered at a time, rounded up to a multiple of `at_once.ROWS`.
        journal: answers that are in it are not made again.

    Returns:
        The answered examples in their old order, each with the model's answer in place of its last one. Only that answer is
        to be learnt; earlier turns of the assistant are as the data have them.
    """
    drawn = np.random.default_rng([seed, *b"own answers"]).permutation(len(examples))[:count]
    prompts = {int(i): examples[i].prompt_ids for i in np.sort(drawn)}
    # As long as any may become; one token more, to tell what ended from what is to be cut.
    longest = max_tokens + 1 - min(map(len, prompts.values()))
    generator = Generator(
        model, stop_ids=model.tokenizer.eos_ids, max_new_tokens=longest, rows=answered_rows(batch_size)
    )
    end = _end_token(model, examples)
    answered = []
    for (i, prompt), said in zip(
        prompts.items(), generator.answer_all(list(prompts.values()), journal), strict=True
    ):
        ids = np.array([*prompt, *said, end][:max_tokens], "int32")
        answered.append(
            dataclasses.replace(examples[i], ids=ids, is_answer=np.arange(len(ids)) >= len(prompt))
        )
    return answered


def _end_token(model: keras.Model, examples: Sequence[Encoded]) -> int:
    """The one that the chat template ends an answer with; a model may stop at several."""
    ends = model.tokenizer.eos_ids
    return next((int(item.ids[-1]) for item in examples if int(item.ids[-1]) in ends), min(ends))
