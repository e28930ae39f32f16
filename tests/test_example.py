import doctest

import pytest

import keras_mtp.data.example
from keras_mtp.data.example import Example, Message
from keras_mtp.errors import UserError

pytestmark = pytest.mark.any_backend


def _conversation(*roles: str) -> list[Message]:
    return [Message(role, f"turn {number}") for number, role in enumerate(roles, start=1)]


def test_the_docstrings_example():
    assert doctest.testmod(keras_mtp.data.example).failed == 0


def test_prompt_and_answer_are_a_conversation_of_two_turns():
    example = Example(id="1", prompt="2 + 2?", answer="4")
    assert Example.from_messages("1", example.messages) == example
    assert not example.history


def test_a_conversation_ends_with_prompt_and_answer():
    turns = _conversation("system", "user", "assistant", "user", "assistant")
    example = Example.from_messages("1", turns)
    assert (example.prompt, example.answer) == ("turn 4", "turn 5")
    assert example.history == tuple(turns[:3]) and example.messages == tuple(turns)


def test_white_space_does_not_make_another_example():
    one, other = Example(id="1", prompt="a  b\n", answer="c"), Example(id="2", prompt="a b", answer=" c")
    assert one.normalised == other.normalised
    assert one.normalised != Example(id="3", prompt="ab", answer="c").normalised
    assert one.normalised != Example(id="4", prompt="a b", answer="c", history=tuple(one.messages)).normalised


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ((), "must have a turn of the assistant. Received: 0 turns"),
        (("user",), "must have a turn of the assistant. Received: 1 turns"),
        (("assistant",), "Received: assistant as turn 1, where user was due"),
        (("system", "assistant"), "Received: assistant as turn 2, where user was due"),
        (("user", "user", "assistant"), "Received: user as turn 2, where assistant was due"),
        (("system", "system", "user", "assistant"), "Received: system as turn 2, where user was due"),
        (("user", "assistant", "system", "user", "assistant"), "Received: system as turn 3"),
        (("user", "assistant", "user"), "must end with a turn of the assistant"),
        (("user", "tool", "assistant"), "Received: 'tool' in turn 2"),
    ],
)
def test_other_conversations_are_refused(roles, message):
    with pytest.raises(UserError) as error:
        Example.from_messages("1", _conversation(*roles))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "kind"), [("", "an empty text"), (" \n", "an empty text"), (7, "a int")])
def test_a_turn_says_something(content, kind):
    with pytest.raises(UserError, match=f"Received: {kind} as turn 1, user's"):
        Example(id="1", prompt=content, answer="x")
