"""The answers that are being given together, one pass after another; any may come or go between two passes.

The model's state is tensors in which an answer is a row. Whoever leaves has his row left out, whoever comes has his put
behind, and rows are filled up to a shape in which a row does not depend on the others (`generation/fixed_shape.py`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_mtp import backend
from keras_mtp.export.served_model import Choosing, ServedModel
from keras_mtp.generation.fixed_shape import fixed_rows
from keras_mtp.generation.statistics import pays
from keras_mtp.serve.answer import Answer


class _Row(NamedTuple):
    """An answer, where its state lies, and how many slots that has to have."""

    answer: Answer
    state: dict[str, Any]
    place: int
    room: int
    slots: int


class Batch:
    """Answers that go on.

    Args:
        model: what says them. stop_ids: tokens that end an answer.
        speculate: whether the model's heads draft, if it has any, for as long as that pays.
    """

    def __init__(self, model: ServedModel, stop_ids: Sequence[int], *, speculate: bool = True):
        self.model, self.stop_ids = model, np.array(stop_ids, "int32")
        self.speculate = speculate and model.said_per_pass > 1
        self._rows: list[_Row] = []
        self._changed = False

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def answers(self) -> list[Answer]:
        """Those that go on."""
        return [row.answer for row in self._rows]

    def add(self, answers: Sequence[Answer]) -> None:
        """Reads their prompts, and says the first token of each."""
        room = [answer.wish.max_new_tokens for answer in answers]
        prompts = [answer.wish.prompt for answer in answers]
        state, told = self.model.prefill(prompts, room, self._choosing(answers))
        slots = state["ids"].shape[1]
        for place, answer in enumerate(answers):
            answer.take(told.tokens[place], ended=told.room[place] == 0)
            self._rows.append(_Row(answer, state, place, int(told.room[place]), slots))
        self._changed = True

    def drop_ended(self) -> None:
        """Leaves out the answers that have ended, or that nobody waits for."""
        going_on = [row for row in self._rows if row.answer.finish is None and not row.answer.cancelled]
        self._changed |= len(going_on) < len(self._rows)
        self._rows = going_on

    def step(self) -> tuple[list[int], bool]:
        """One pass: how many tokens it yielded for each answer, and whether with drafts."""
        state, filler = self._state()
        answers = self.answers
        asked, gave = (sum(getattr(a, name) for a in answers) for name in ("drafts_asked", "drafts_gave"))
        speculate = self.speculate and bool(pays(asked, gave / max(asked, 1)))
        room = np.array([*(row.room for row in self._rows), *[0] * filler], "int32")
        state, told = self.model.step(state, room, self._choosing(answers, filler), speculate=speculate)
        yielded = [len(tokens) for tokens in told.tokens[: len(answers)]]
        for place, answer in enumerate(answers):
            answer.passes += 1
            if speculate:
                answer.drafts_asked += 1
                answer.drafts_gave += yielded[place]
            answer.take(told.tokens[place], ended=told.room[place] == 0)
        self._rows = [
            row._replace(state=state, place=place, room=int(told.room[place]))
            for place, row in enumerate(self._rows)
        ]
        return yielded, speculate

    def _state(self) -> tuple[dict[str, Any], int]:
        """The state of all rows together, and how many of them are there to fill up."""
        filler = fixed_rows(len(self._rows), self.model.width) - len(self._rows)
        if self._changed:
            tf = backend.tensorflow()
            rows = [*self._rows, *[self._rows[0]] * filler]
            slots = max(row.slots for row in rows)
            groups: list[tuple[dict[str, Any], list[int]]] = []
            for row in rows:
                if not groups or groups[-1][0] is not row.state:
                    groups.append((row.state, []))
                groups[-1][1].append(row.place)
            state = {
                name: tf.concat(
                    [_fitted(name, tf.gather(of[name], places), slots) for of, places in groups], axis=0
                )
                for name in self.model.state_names
            }
            self._rows = [row._replace(state=state, place=place) for place, row in enumerate(self._rows)]
            self._changed = False
        return self._rows[0].state, filler

    def _choosing(self, answers: Sequence[Answer], filler: int = 0) -> Choosing:
        rows = [*answers, *[answers[0]] * filler]
        return Choosing(
            stop_ids=self.stop_ids,
            uniforms=np.array([answer.numbers(self.model.width) for answer in rows]),
            temperature=np.array([answer.wish.temperature for answer in rows]),
            top_p=np.array([answer.wish.top_p for answer in rows]),
        )


def _fitted(name: str, x, slots: int):
    """`x` of a state with so many slots: zeros behind, or what no row of it uses any more cut off."""
    tf = backend.tensorflow()
    if name == "at":
        return x
    axis = 1 if name == "ids" else len(x.shape) - 2
    here = x.shape[axis]
    if here > slots:
        return tf.gather(x, tf.range(slots), axis=axis)
    return (
        tf.pad(x, [[0, slots - here if i == axis else 0] for i in range(len(x.shape))]) if here < slots else x
    )
