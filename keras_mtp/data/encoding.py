"""Text to token ids, through the model's own chat template, with what the assistant says marked.

Whose token is whose is read off the template itself: it renders the conversation up to each turn of the assistant, and
through it, and what it adds is that turn. A turn is learnt with its end token; what a template puts after that (a
newline, usually) is not, since nobody will ever generate it.

    <|user|>1 + 1?<|end|><|assistant|>2<|end|><|user|>And 1 more?<|end|><|assistant|>3<|end|>
                                      ^^^^^^^^                                       ^^^^^^^^

Prompts and answers are encoded one after the other, which is exactly what generation will see: a prompt already
encoded, then tokens one by one.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from keras_mtp.data.example import Example, Message
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.data.turns import cut_at_answers
from keras_mtp.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One example as tokens.

    Args:
        id: the example's id.
        ids: int32 array (T,), the conversation up to the end of its last turn.
        is_answer: bool array (T,), True at the tokens to learn: the assistant's, end tokens included. The last always is.
        source: the example's source.
    """

    id: str
    ids: np.ndarray
    is_answer: np.ndarray
    source: str = ""

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens before the last answer."""
        return self.ids[: int(np.flatnonzero(~self.is_answer)[-1]) + 1].tolist()


@dataclass(frozen=True, kw_only=True)
class EncodedSplit:
    """What became of a split's examples.

    Args:
        examples: those that fit, or were made to.
        skipped: ids of those left out for their length. truncated: ids of those cut to it.
        marked: ids of those left out since they hold the text of a special token.
    """

    examples: list[Encoded]
    skipped: list[str]
    truncated: list[str]
    marked: list[str] = dataclasses.field(default_factory=list)


def encode_prompt(prompt: str, tokenizer: Tokenizer, history: Sequence[Message] = ()) -> list[int]:
    """Token ids of a user's turn, and of what was said before it, up to where the model is to answer."""
    pieces = cut_at_answers([*history, Message("user", prompt)], tokenizer)
    return _joined(pieces, tokenizer)[0]


def encode_raw(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a text that is to be continued as it stands, without a template.

    Whoever writes such a text writes the whole input: "<|im_end|>" and the like are read as the tokens they name, and
    bos is put in front if the model expects it.
    """
    return _with_bos(tokenizer.encode(text, special=True), tokenizer)


def encode_example(example: Example, tokenizer: Tokenizer) -> Encoded:
    """Token ids of a conversation, with every turn of the assistant marked.

    Raises:
        UserError: the chat template does not end an answer with an end token, so the model could not learn where to
            stop; it renders earlier turns differently once others follow, so that no turn can be told from the rest;
            or a turn holds a special token's text, which would be read as the token.

    Example:

    >>> example = Example(
    ...     id="1",
    ...     history=(Message("user", "1 + 1?"), Message("assistant", "2")),
    ...     prompt="And 1 more?",
    ...     answer="3",
    ... )
    >>> item = encode_example(example, tokenizer)
    >>> texts = [tokenizer.decode([token], skip_special=False) for token in item.ids]
    >>> marks = [("^" if learnt else " ") * len(text) for text, learnt in zip(texts, item.is_answer)]
    >>> print("".join(texts), "".join(marks), sep="\\n")
    <|user|>1 + 1?<|end|><|assistant|>2<|end|><|user|>And 1 more?<|end|><|assistant|>3<|end|>
                                      ^^^^^^^^                                       ^^^^^^^^
    """
    try:
        refuse_special_text(example.messages, tokenizer)
        ids, is_answer = _joined(cut_at_answers(example.messages, tokenizer), tokenizer)
    except UserError as error:
        raise UserError(f"Example {example.id}: {error}") from error
    return Encoded(
        id=example.id, ids=np.asarray(ids, "int32"), is_answer=np.asarray(is_answer), source=example.source
    )


def encode_all(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    max_tokens: int,
    too_long: str = "skip",
    special_text: str = "refuse",
) -> EncodedSplit:
    """Encodes every example.

    Args:
        max_tokens: longest example.
        too_long: what happens to longer ones: "skip" leaves them out, "truncate" cuts them on the right, back to their
            last token to learn; one whose first `max_tokens` tokens hold none is left out all the same.
        special_text: what happens to those that hold the text of a special token: "skip" leaves them out.

    Raises:
        UserError: as `encode_example`; not for special tokens' texts with "skip".
    """
    kept: list[Encoded] = []
    skipped, truncated, marked = [], [], []
    for example in examples:
        if special_text == "skip" and special_text_in(example.messages, tokenizer):
            marked.append(example.id)
            continue
        item = encode_example(example, tokenizer)
        if len(item.ids) <= max_tokens:
            kept.append(item)
        elif too_long == "truncate" and item.is_answer[:max_tokens].any():
            kept.append(_truncated(item, max_tokens))
            truncated.append(item.id)
        else:
            skipped.append(item.id)
    return EncodedSplit(examples=kept, skipped=skipped, truncated=truncated, marked=marked)


def _truncated(item: Encoded, max_tokens: int) -> Encoded:
    length = int(np.flatnonzero(item.is_answer[:max_tokens])[-1]) + 1
    return dataclasses.replace(item, ids=item.ids[:length], is_answer=item.is_answer[:length])


def special_text_in(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[str, int] | None:
    """The first text of a special token in a conversation, and the turn that holds it."""
    added = tokenizer.backend.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special]
    for number, message in enumerate(messages, start=1):
        if found := [text for text in special if text in message.content]:
            return found[0], number
    return None


def refuse_special_text(messages: Sequence[Message], tokenizer: Tokenizer) -> None:
    """Raises a `UserError` if a turn holds the text of a special token."""
    if found := special_text_in(messages, tokenizer):
        raise UserError(
            f"A turn must not hold the text of a special token. Received: {found[0]!r} in turn {found[1]}, which the "
            "model would read as the token. If a template has been applied to the data already, take it out again; "
            "else reword the turn, or set data.special_text=skip."
        )


def _joined(pieces: Sequence[str], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Token ids of all pieces, and which of them belong to every second piece."""
    ids = tokenizer.encode(pieces[0], special=True)
    is_answer = [False] * len(ids)
    for number, piece in enumerate(pieces[1:], start=1):
        added = tokenizer.encode(piece, special=True, continues=True)
        if number % 2 == 1 and added[-1] not in tokenizer.eos_ids:
            raise UserError(
                "The end of an answer must be read as the model's end token. Received: a tokenizer that reads "
                f"{piece[-20:]!r} otherwise: the model could not learn to stop. Use another file of the model."
            )
        ids += added
        is_answer += [number % 2 == 1] * len(added)
    whole = _with_bos(ids, tokenizer)
    return whole, [False] * (len(whole) - len(ids)) + is_answer


def _with_bos(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return bos + ids if tokenizer.add_bos and ids[:1] != bos else ids
