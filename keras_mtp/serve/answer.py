"""One answer on its way: tokens in, pieces of text out, to whoever waits for them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.generation.draws import uniforms
from keras_mtp.generation.stream import TextStream


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What an answer is to be.

    Args:
        prompt: token ids. max_new_tokens: longest answer. stop: texts that end it and are not part of it.
        temperature: 0 for the likeliest tokens. top_p: draw among the fewest tokens that have this probability together.
        continues: whether the answer goes on with the prompt's text; else it is a text of its own, a turn.
        seed: of what is drawn. row: place among the request's prompts, each of which draws its own.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    stop: Sequence[str] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    continues: bool = False
    seed: int = 0
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class News:
    """What a pass brought to an answer.

    Args:
        pieces: (new text, whether a head had drafted it), a piece for each token that brought text.
        finish: "stop" or "length" where the answer has ended. error: why it could not.
    """

    pieces: Sequence[tuple[str, bool]] = ()
    finish: str | None = None
    error: str | None = None

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


@dataclass(eq=False)
class Answer:
    """An answer as far as it has come.

    Args:
        wish: what it is to be. tokenizer: of the model. tell: is given every `News`, by the thread that computes.
    """

    wish: Wish
    tokenizer: Tokenizer
    tell: Callable[[News], Any]
    said: int = 0  # tokens, the one that ended it included
    drafted: int = 0  # of them; a draft that was right
    passes: int = 0
    drafts_asked: int = 0  # passes with drafts, and what these yielded
    drafts_gave: int = 0
    finish: str | None = None
    end_token: int | None = None  # that ended it
    cancelled: bool = False  # nobody waits any more
    came: float = 0.0  # by `time.monotonic`
    stream: TextStream = field(init=False)

    def __post_init__(self):
        decode = functools.partial(self.tokenizer.decode, continues=self.wish.continues)
        self.stream = TextStream(decode, self.wish.stop)
        longest = self.wish.max_new_tokens
        self._numbers = uniforms(self.wish.seed, self.wish.row, longest) if self.wish.temperature else None

    def numbers(self, width: int) -> list[float]:
        """By which the next `width` tokens are drawn; what lies behind the longest answer is never used."""
        if self._numbers is None:
            return [0.0] * width
        own = self._numbers[self.said : self.said + width].tolist()
        return own + [0.0] * (width - len(own))

    def take(self, tokens: Sequence[int], *, ended: bool) -> None:
        """Takes what a pass said, and tells. All but the last of a pass's tokens are drafts that were right.

        Args:
            tokens: 1 to K ids; the last may be one that ends answers. ended: whether no more will come.
        """
        pieces = []
        for place, token in enumerate(tokens):
            drafted = place < len(tokens) - 1
            self.said += 1
            self.drafted += drafted
            if token in self.tokenizer.eos_ids:
                self.finish, self.end_token = "stop", token
                break
            if text := self.stream.add([token]):
                pieces.append((text, drafted))
            if self.stream.ended:
                self.finish = "stop"
                break
        if ended and self.finish is None:
            self.finish = "length"
        if self.finish and (rest := self.stream.finish()):
            pieces.append((rest, False))
        if pieces or self.finish:
            self.tell(News(pieces=pieces, finish=self.finish))
