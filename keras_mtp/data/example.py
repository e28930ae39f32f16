"""One training or test item as text, before any tokenizer has seen it: a conversation that ends with an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from keras_mtp.errors import UserError

ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """One turn of a conversation.

    Args:
        role: who speaks, "system", "user" or "assistant".
        content: what is said.
    """

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt and the answer to learn, with what was said before it if that was anything.

    Args:
        id: names the item in logs and reports; unique within its split.
        prompt: what the user says. The model's chat template is applied later, by `keras_mtp.data.encoding`.
        answer: what the model should say, the whole of it.
        history: the turns before the prompt. The assistant's among them are learnt as well.
        references: further answers that count as right, where a task has several.
        source: which part of the data it is from, where they have parts; a report shows the loss on each.

    Raises:
        UserError: the turns do not alternate between user and assistant, after at most one of system; or one is empty.

    Example:

    >>> Example(id="1", prompt="2 + 2?", answer="4").messages
    (Message(role='user', content='2 + 2?'), Message(role='assistant', content='4'))
    """

    id: str
    prompt: str
    answer: str
    history: tuple[Message, ...] = ()
    references: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        _check(self.messages)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation; its last turn is the answer."""
        return (*self.history, Message("user", self.prompt), Message("assistant", self.answer))

    @classmethod
    def from_messages(cls, id: str, messages: Sequence[Message]) -> Self:
        """The example that a conversation is.

        Raises:
            UserError: it is none; see the class.
        """
        _check(messages)
        *history, prompt, answer = messages
        return cls(id=id, prompt=prompt.content, answer=answer.content, history=tuple(history))

    @property
    def normalised(self) -> tuple[tuple[str, str], ...]:
        """Roles and contents, with runs of white space as one space: what makes two examples the same."""
        return tuple((role, " ".join(content.split())) for role, content in self.messages)


def _check(messages: Sequence[Message]) -> None:
    """That a conversation is one that chat models are trained on."""
    if not any(message.role == "assistant" for message in messages):
        raise UserError(
            f"A conversation must have a turn of the assistant. Received: {len(messages)} turns, none of them the "
            "assistant's. Add what the model should say, or remove the conversation."
        )
    expected = "user"
    for number, (role, content) in enumerate(messages, start=1):
        if role not in ROLES:
            raise UserError(
                f"A role must be {', '.join(ROLES)}. Received: {role!r} in turn {number}. Rename it."
            )
        if not isinstance(content, str) or not content.strip():
            raise UserError(
                f"A turn must say something. Received: {_kind(content)} as turn {number}, {role}'s. "
                "Fill it in, or remove the conversation."
            )
        if role == "system" and number == 1:
            continue
        if role != expected:
            raise UserError(
                "Turns must alternate between user and assistant, beginning with the user, after at most one of system. "
                f"Received: {role} as turn {number}, where {expected} was due. Join or remove turns."
            )
        expected = "assistant" if role == "user" else "user"
    if expected == "assistant":
        raise UserError(
            "A conversation must end with a turn of the assistant. Received: one that ends with the user's. "
            "Remove the last turn, or add the answer."
        )


def _kind(content: Any) -> str:
    return "an empty text" if isinstance(content, str) else f"a {type(content).__name__}"
