"""Text to token ids, through the model's own chat template, with what the assistant says marked.

Whose token is whose is read off the template itself: it renders the conversation up to each turn of the assistant, and
through it, and what it adds is that turn. A turn is learnt with its end token; what a template puts after that (a
newline, usually) is not, since nobody will ever generate it.

    <|user|>1 + 1?<|end|><|assistant|>2<|end|><|user|>And 1 more?<|end|><|assistant|>3<|end|>
                                      ^^^^^^^^                                       ^^^^^^^^

Prompts and answers are encoded one after the other, which is exactly what generation will see: a prompt already
encoded, then tokens one by one.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from keras_mtp.data.example import Example, Message
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError

# For models without a chat template: what is told to the model stands on lines of its own, an answer before its end.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message.content + (eos_token if message.role == 'assistant' else '\\n') }}"
    "{% endfor %}"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One example as tokens.

    Args:
        id: the example's id.
        ids: int32 array (T,), the conversation up to the end of its last turn.
        is_answer: bool array (T,), True at the tokens to learn: the assistant's, end tokens included. The last always is.
    """

    id: str
    ids: np.ndarray
    is_answer: np.ndarray

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
    """

    examples: list[Encoded]
    skipped: list[str]
    truncated: list[str]


def encode_prompt(prompt: str, tokenizer: Tokenizer, history: Sequence[Message] = ()) -> list[int]:
    """Token ids of a user's turn, and of what was said before it, up to where the model is to answer."""
    pieces = _pieces([*history, Message("user", prompt)], tokenizer)
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
        _refuse_special_tokens(example.messages, tokenizer)
        ids, is_answer = _joined(_pieces(example.messages, tokenizer), tokenizer)
    except UserError as error:
        raise UserError(f"Example {example.id}: {error}") from error
    return Encoded(id=example.id, ids=np.asarray(ids, "int32"), is_answer=np.asarray(is_answer))


def encode_all(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    max_tokens: int,
    too_long: str = "skip",
) -> EncodedSplit:
    """Encodes every example.

    Args:
        max_tokens: longest example.
        too_long: what happens to longer ones: "skip" leaves them out, "truncate" cuts them on the right, back to their
            last token to learn; one whose first `max_tokens` tokens hold none is left out all the same.
    """
    kept: list[Encoded] = []
    skipped, truncated = [], []
    for item in (encode_example(example, tokenizer) for example in examples):
        if len(item.ids) <= max_tokens:
            kept.append(item)
        elif too_long == "truncate" and item.is_answer[:max_tokens].any():
            kept.append(_truncated(item, max_tokens))
            truncated.append(item.id)
        else:
            skipped.append(item.id)
    return EncodedSplit(examples=kept, skipped=skipped, truncated=truncated)


def _truncated(item: Encoded, max_tokens: int) -> Encoded:
    length = int(np.flatnonzero(item.is_answer[:max_tokens])[-1]) + 1
    return Encoded(id=item.id, ids=item.ids[:length], is_answer=item.is_answer[:length])


def _pieces(messages: Sequence[Message], tokenizer: Tokenizer) -> list[str]:
    """The conversation as text, cut where the assistant begins to speak and where it ends: every second one is learnt.

    Concatenated they are what the template renders, less what it puts after the last end token.
    """
    if tokenizer.chat_template is None:
        tokenizer = tokenizer.with_template(PLAIN_TEMPLATE)
    turns = [message._asdict() for message in messages]
    cuts, text = [0], ""
    for place, message in enumerate(messages):
        if message.role == "assistant":
            before = tokenizer.render_chat(turns[:place], add_generation_prompt=True)
            through = tokenizer.render_chat(turns[: place + 1], add_generation_prompt=False)
            if not (before.startswith(text) and through.startswith(before)):
                _refuse_template(place + 1)
            cuts += [len(before), _end(through, len(before), tokenizer)]
            text = through
    if messages[-1].role != "assistant":
        prompt = tokenizer.render_chat(turns, add_generation_prompt=True)
        if not prompt.startswith(text):
            _refuse_template(len(turns))
        cuts, text = [*cuts, len(prompt)], prompt
    return [text[start:end] for start, end in itertools.pairwise(cuts)]


def _refuse_template(turn: int) -> None:
    raise UserError(
        "The chat template must be append-only. Received: one that renders a prompt differently once turns follow it, so "
        f"answers cannot be told from prompts (seen at turn {turn}; some templates drop the reasoning from earlier "
        "turns). Give another template as data.template, or take such text out of the data."
    )


def _end(text: str, start: int, tokenizer: Tokenizer) -> int:
    """Where the answer that begins at `start` ends, its end token included."""
    ends = [tokenizer.decode([token], skip_special=False) for token in tokenizer.eos_ids]
    found = max((text.rfind(end, start), len(end)) for end in ends)
    if found[0] < start:
        raise UserError(
            "The chat template must end an answer with an end token. Received: one that renders an answer without an end "
            f"token ({' or '.join(ends)}): the model could not learn to stop. Give another template as data.template."
        )
    if found[0] == start:
        raise UserError(
            "The chat template must render what the assistant says. Received: one that leaves it out: there would be "
            "nothing to learn. Give another template as data.template."
        )
    return sum(found)


def _refuse_special_tokens(messages: Sequence[Message], tokenizer: Tokenizer) -> None:
    added = tokenizer.backend.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special]
    for number, message in enumerate(messages, start=1):
        if found := [text for text in special if text in message.content]:
            raise UserError(
                f"A turn must not hold the text of a special token. Received: {found[0]!r} in turn {number}, which the "
                "model would read as the token. If a template has been applied to the data already, take it out again; "
                "else reword the turn."
            )


def _joined(pieces: Sequence[str], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Token ids of all pieces, and which of them belong to every second piece."""
    ids = tokenizer.encode(pieces[0], special=True)
    is_answer = [False] * len(ids)
    for number, piece in enumerate(pieces[1:], start=1):
        added = tokenizer.encode(piece, special=True, continues=True)
        ids += added
        is_answer += [number % 2 == 1] * len(added)
    whole = _with_bos(ids, tokenizer)
    return whole, [False] * (len(whole) - len(ids)) + is_answer


def _with_bos(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return bos + ids if tokenizer.add_bos and ids[:1] != bos else ids
