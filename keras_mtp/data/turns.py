"""Which stretches of a conversation's text are the assistant's, read off the chat template itself.

The template renders the conversation up to each turn of the assistant, ready for it to speak, and then through it; what
it adds is that turn. That works with any template that only ever appends, and others are refused.
"""

import itertools
from collections.abc import Sequence
from typing import NoReturn

from keras_mtp.data.example import Message
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError

# For models without a chat template: what is told to the model stands on lines of its own, an answer before its end.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message.content + (eos_token if message.role == 'assistant' else '\\n') }}"
    "{% endfor %}"
)


def cut_at_answers(messages: Sequence[Message], tokenizer: Tokenizer) -> list[str]:
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


def _refuse_template(turn: int) -> NoReturn:
    raise UserError(
        "The chat template must be append-only. Received: one that renders a prompt differently once turns follow it, so "
        f"answers cannot be told from prompts (seen at turn {turn}; some templates drop the reasoning from earlier "
        "turns). Give another template as data.template, or take such text out of the data."
    )


def _end(text: str, start: int, tokenizer: Tokenizer) -> int:
    """Where the answer that begins at `start` ends, its end token included."""
    ends = [tokenizer.decode([token], skip_special=False) for token in tokenizer.eos_ids]
    found = max((text.rfind(end, start), len(end)) for end in ends if end)
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
