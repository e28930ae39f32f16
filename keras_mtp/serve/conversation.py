"""Turns of a conversation, as OpenAI's API has them, to the tokens that the model was trained to see."""

from typing import Any

from keras_mtp.data.encoding import encode_prompt, special_text_in
from keras_mtp.data.example import Message
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.limits import Refused

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def read_conversation(messages: Any, tokenizer: Tokenizer) -> list[int]:
    """Token ids of turns, up to where the assistant is to speak. Raises `Refused`, or `UserError` from the template."""
    if not isinstance(messages, list) or not messages:
        raise Refused(f"`messages` must be a list of turns. Received: {messages!r:.80}.", param="messages")
    turns = [_turn(message) for message in messages]
    if turns[-1].role != "user":
        raise Refused(
            f"The last of `messages` must be the user's. Received: {turns[-1].role}.", param="messages"
        )
    if not turns[-1].content.strip():
        raise Refused("The last of `messages` must not be empty.", param="messages")
    if found := special_text_in(turns, tokenizer):
        raise Refused(
            f"`messages` must not hold the text of a special token. Received: {found[0]!r} in turn {found[1]}, which the "
            "model would read as the token.",
            param="messages",
        )
    return encode_prompt(turns[-1].content, tokenizer, history=turns[:-1])


def _turn(message: Any) -> Message:
    if not isinstance(message, dict) or message.get("role") not in list(ROLES):  # of any type
        raise Refused(
            f"Each of `messages` must have a role of {', '.join(ROLES)}. Received: {message!r:.80}.",
            param="messages",
        )
    content = message.get("content")
    if isinstance(content, list):  # in parts
        parts = [part["text"] for part in content if _is_text(part)]
        content = "".join(parts) if len(parts) == len(content) else None
    if not isinstance(content, str):
        raise Refused(
            f"Each of `messages` must have a text as content. Received: {message!r:.80}.", param="messages"
        )
    return Message(ROLES[message["role"]], content)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
