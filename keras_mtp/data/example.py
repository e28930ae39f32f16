"""One training or test item as text, before any tokenizer has seen it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt and the answer to learn.

    Args:
        id: names the item in logs and reports; unique within its split.
        prompt: what the user says. The model's chat template is applied later, by `keras_mtp.data.encoding`.
        answer: what the model should say, the whole of it.
        references: further answers that count as right, where a task has several.
    """

    id: str
    prompt: str
    answer: str
    references: tuple[str, ...] = ()
