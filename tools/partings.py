"""Where two answers to the same prompt part, and what the model thinks of the tokens that they go on with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

TIE = 1e-3  # logits; where tokens are no further apart, rounding may decide
Logits = Callable[[list[int]], np.ndarray]  # token ids -> those of the next token (V,)


@dataclass(frozen=True, kw_only=True)
class Parting:
    """The first difference of two answers.

    Args:
        question: its place among the questions. place: that of the token in the answer.
        said: both tokens; None for the end of the answer.
        margin: by how much the likelier of the two tokens, or a likelier third one, is ahead of the other, in logits. Where they
            are the two likeliest, that is the margin between the first and the second.
    """

    question: int
    place: int
    said: tuple[int | None, int | None]
    margin: float


def parting(
    question: int,
    prompt: list[int],
    answers: tuple[list[int], list[int]],
    *,
    stop_ids: Sequence[int],
    logits: Logits,
) -> Parting | None:
    """Where two answers to a prompt part; None where they are the same.

    Args:
        prompt, answers: token ids, answers without the stop token. stop_ids: what this may be.
        logits: of the model, asked only if they part.
    """
    place = first_difference(*answers)
    if place is None:
        return None
    ours, others = (answer[place] if place < len(answer) else None for answer in answers)
    scores = logits(prompt + answers[0][:place])
    each = [max(scores[list(stop_ids) if token is None else [token]]) for token in (ours, others)]
    margin = float(max(scores) - min(each))
    return Parting(question=question, place=place, said=(ours, others), margin=margin)


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The place of the first token that is another; None where there is none."""
    for place, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return place
    return None if len(a) == len(b) else min(len(a), len(b))
