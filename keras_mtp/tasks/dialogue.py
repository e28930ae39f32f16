"""A passage and the questions that are asked about it one after the other: what a conversational question answerer reads.

The passage opens the user's first turn, further questions are turns of their own, and the answers are the assistant's:

    user       Jo has a red cat and a dog. ...  Which pets has Jo?
    assistant  a cat and a dog
    user       What colour is the first?
    assistant  red
"""

from collections.abc import Iterator
from dataclasses import dataclass

from keras_mtp.data.example import Example, Message


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question with its answers.

    Args:
        question: what is asked. answer: what is answered, and what later turns refer to.
        references: what others answered.
    """

    question: str
    answer: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A passage and its turns, of which there is at least one.

    Args:
        id: names it. source: which part of the data it is from.
    """

    id: str
    passage: str
    turns: tuple[Turn, ...]
    source: str = ""

    def whole(self) -> Example:
        """One example in which every answer is learnt, given the passage and the turns before it."""
        return self._up_to(len(self.turns), self.id)

    def turn_by_turn(self) -> Iterator[Example]:
        """An example for each turn: its answer is the one asked for, and those before it are given."""
        for number in range(1, len(self.turns) + 1):
            yield self._up_to(number, f"{self.id}/{number}")

    def _up_to(self, number: int, id: str) -> Example:
        first, *further = (turn.question for turn in self.turns[:number])
        *questions, prompt = f"{self.passage}\n\n{first}", *further
        last = self.turns[number - 1]
        history = (
            message
            for question, turn in zip(questions, self.turns, strict=False)
            for message in (Message("user", question), Message("assistant", turn.answer))
        )
        return Example(
            id=id,
            prompt=prompt,
            answer=last.answer,
            history=tuple(history),
            references=last.references,
            source=self.source,
        )
