"""Text to token ids, through the model's own chat template.

Prompt and answer are encoded apart and joined, which is exactly what generation will see: a prompt already encoded,
then tokens one by one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from keras_mtp.data.example import Example
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One example as tokens.

    Args:
        id: the example's id.
        ids: int32 array (T,), prompt and answer.
        is_answer: bool array (T,), True at the tokens to learn: the answer's, its end token included.
    """

    id: str
    ids: np.ndarray
    is_answer: np.ndarray

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens before the first one to learn."""
        return self.ids[: int(np.argmax(self.is_answer))].tolist()


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a user turn, up to where the model is to answer."""
    return _with_bos(tokenizer.encode(_prompt_text(prompt, tokenizer), special=True), tokenizer)


def encode_example(example: Example, tokenizer: Tokenizer) -> Encoded:
    """Token ids of a prompt and its answer, with the answer marked.

    Raises:
        UserError: the chat template does not end the answer with an end-of-turn token, so the model could not learn
            where to stop.
    """
    prompt = encode_prompt(example.prompt, tokenizer)
    answer = _through_end_token(tokenizer.encode(_answer_text(example, tokenizer), special=True), tokenizer)
    return Encoded(
        id=example.id,
        ids=np.asarray(prompt + answer, "int32"),
        is_answer=np.arange(len(prompt) + len(answer)) >= len(prompt),
    )


def encode_all(
    examples: Iterable[Example], tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[Encoded], list[str]]:
    """Encodes every example; those longer than `max_tokens` are left out.

    Returns:
        The encoded examples, and the ids of those left out.
    """
    encoded = [encode_example(example, tokenizer) for example in examples]
    kept = [item for item in encoded if len(item.ids) <= max_tokens]
    return kept, [item.id for item in encoded if len(item.ids) > max_tokens]


def _prompt_text(prompt: str, tokenizer: Tokenizer) -> str:
    if tokenizer.chat_template is None:
        return prompt + "\n"
    return tokenizer.render_chat([{"role": "user", "content": prompt}], add_generation_prompt=True)


def _answer_text(example: Example, tokenizer: Tokenizer) -> str:
    """What the template puts after the prompt: the answer as it shapes it, end token included."""
    prompt = _prompt_text(example.prompt, tokenizer)
    if tokenizer.chat_template is None:
        return example.answer + tokenizer.decode([tokenizer.eos_id], skip_special=False)
    turns = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]
    whole = tokenizer.render_chat(turns, add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise UserError(
            "The model's chat template renders a prompt differently once its answer follows, so the answer cannot be "
            f"told from the prompt. Seen at example {example.id}. Use a model with an append-only chat template."
        )
    return whole[len(prompt) :]


def _through_end_token(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Cuts what a template adds after the end of the turn (a newline, usually): nobody will ever generate it."""
    for last in range(len(ids) - 1, -1, -1):
        if ids[last] in tokenizer.eos_ids:
            return ids[: last + 1]
    raise UserError(
        "The model's chat template ends an answer without an end token: the model could not learn to stop."
    )


def _with_bos(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return bos + ids if tokenizer.add_bos and ids[:1] != bos else ids
