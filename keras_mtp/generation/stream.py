"""Text as it comes, token by token, and its end at a stop string."""

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what a tokenizer writes for the first bytes of a character


class TextStream:
    """The text of one answer.

    Args:
        decode: token ids to text.
        stops: strings that end the answer; they are not part of it.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()):
        self.decode, self.stops = decode, [stop for stop in stops if stop]
        self.ids: list[int] = []
        self.text = ""
        self.given = 0
        self.ended = False

    def add(self, ids: Sequence[int]) -> str:
        """Takes new tokens; gives the new text that nothing to come can take back."""
        if self.ended or not ids:
            return ""
        self.ids += ids
        self.text = self.decode(self.ids)
        found = [place for stop in self.stops if (place := self.text.find(stop)) >= 0]
        if found:
            self.text, self.ended = self.text[: min(found)], True
            return self._give(len(self.text))
        return self._give(len(self.text) - self._uncertain())

    def finish(self) -> str:
        """The rest of the text, when no token comes any more."""
        self.ended = True
        return self._give(len(self.text))

    def ids_of_text(self) -> list[int]:
        """The fewest of the tokens in whose text the answer is whole; all of them if no stop string ended it."""
        if self.decode(self.ids) == self.text:
            return self.ids
        counts = range(len(self.ids) + 1)
        return next(self.ids[:n] for n in counts if self.decode(self.ids[:n]).startswith(self.text))

    def _give(self, end: int) -> str:
        start, self.given = self.given, max(self.given, end)
        return self.text[start : self.given]

    def _uncertain(self) -> int:
        """Characters at the end that may yet become others, or the beginning of a stop string."""
        finished = self.text.rstrip(UNFINISHED)
        starts = (n for stop in self.stops for n in range(1, len(stop)) if finished.endswith(stop[:n]))
        return len(self.text) - len(finished) + max(starts, default=0)
