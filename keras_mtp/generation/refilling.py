"""Answers to more prompts than a batch has rows: rows whose answers have ended are given the next prompts.

Waiting for the longest answer of every batch would leave half of the rows idle. A few prompts at a time are read into a cache of
their own, always of the same size, which then takes the place of rows of the large one. So every product has the shape
that it has for all other prompts, and no answer depends on how many there are, nor on who is beside it.
"""

from collections import deque
from collections.abc import Callable, Sequence

from keras_mtp.at_once import ADMITTED
from keras_mtp.generation.batch import Batch

LOOK = 8  # passes between two looks at who has ended


def refilled(
    new_batch: Callable[..., Batch], prompts: Sequence[Sequence[int]], *, rows: int, first: int
) -> list[list[int]]:
    """The new tokens of every prompt, without the stop token.

    Args:
        new_batch: a `Batch`, given `prompts`, `rows` and `numbers`. prompts: token ids, none empty. rows: at least `ADMITTED`.
        first: number of the first prompt.
    """
    waiting = deque(sorted(range(len(prompts)), key=lambda place: len(prompts[place])))
    answers: dict[int, list[int]] = {}
    batch, asked = new_batch([], rows=rows), dict[int, int]()  # by the row, the place of its prompt
    while len(answers) < len(prompts):
        ended, tokens = batch.ended, batch.tokens()
        for row in asked.keys() & ended:
            answers[asked.pop(row)] = tokens[row]
        while waiting and len(ended) >= ADMITTED:
            places = [waiting.popleft() for _ in range(min(ADMITTED, len(waiting)))]
            newcomers = new_batch(
                [prompts[place] for place in places],
                rows=ADMITTED,
                numbers=[first + place for place in places],
            )
            newcomers.read()
            free, ended = ended[:ADMITTED], ended[ADMITTED:]
            batch.admit(newcomers, free)
            del newcomers  # and the cache of theirs, before the next ones get one
            asked |= zip(free, places, strict=False)
        batch.run(LOOK)
    return [answers[place] for place in range(len(prompts))]
