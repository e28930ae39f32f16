"""A chat template turns messages into one text: the model's own, or one that a recipe gives.

The template is Jinja2 and may come with a model from anywhere, so it runs in a sandbox that bounds what it may use
(`template_sandbox.py`), set up as transformers sets up its own (`transformers/utils/chat_template_utils.py`: trimmed
blocks, `raise_exception`, a `tojson` that keeps Unicode).

One name is left out on purpose: `strftime_now`. With it a template puts today's date into the prompt (Llama 3.2
does), and a run judged tomorrow would not see the text it was trained on. Such templates fall back to a fixed date.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from keras_mtp.data.template_budget import Budget
from keras_mtp.data.template_sandbox import TemplateSandbox
from keras_mtp.errors import UserError
from keras_mtp.untrusted import open_plain

MODELS_OWN = "chat"
FILE_ENDINGS = (".jinja", ".jinja2", ".j2")
LONGEST_SOURCE = 100_000  # characters; the longest among well-known models has some 30,000
_LARGEST_FILE = 4 * LONGEST_SOURCE  # bytes; a character has up to four
BASE_UNITS, UNITS_PER_CHARACTER = 2_000_000, 200  # what rendering may use, see `Budget`


@functools.lru_cache(maxsize=16)
def compile_template(source: str) -> Callable[..., str]:
    """Compiles a chat template.

    Args:
        source: the template's text, as the model's files hold it.

    Returns:
        A function of `messages`, `add_generation_prompt` and the special tokens' texts (`bos_token`, ...).

    Raises:
        UserError: the template is broken, here or when it is rendered; or it takes more time or makes more text than
            any chat template has reason to.

    Example:

    >>> render = compile_template("{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}")
    >>> render(messages=[{"role": "user", "content": "Hi"}])
    'user: Hi;'
    """
    if len(source) > LONGEST_SOURCE:
        raise UserError(
            f"A chat template must have at most {LONGEST_SOURCE} characters. Received: {len(source)}. Use another one."
        )
    sandbox = TemplateSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    sandbox.globals["raise_exception"] = _raise_exception
    try:
        template = sandbox.from_string(source)
    except Exception as error:  # Jinja2's own, and Python's on what Jinja2 makes of it
        raise UserError(f"The chat template is not valid Jinja2: {_line(error)}. Use another one.") from error

    def render(**values: Any) -> str:
        sandbox.budget = Budget(BASE_UNITS + UNITS_PER_CHARACTER * _characters(values.get("messages", ())))
        try:
            return template.render(tools=None, documents=None, **values)
        except Exception as error:  # a template can raise what Python can
            raise UserError(f"The chat template refuses these messages: {_line(error)}") from error

    return render


def read_template(template: str) -> str:
    """The text that a recipe's `data.template` stands for.

    Args:
        template: "chat" for the model's own, a Jinja2 text, or the path of a file that ends in .jinja, .jinja2 or .j2.

    Returns:
        Jinja2 text; "chat" stays what it is.

    Raises:
        UserError: it is none of them, or the file cannot be read.
    """
    if template == MODELS_OWN or "{{" in template or "{%" in template:
        return template
    if not template.endswith(FILE_ENDINGS):
        raise UserError(
            "`data.template` must be chat (the model's own), Jinja2 text with {{ ... }} in it, or the path of a file "
            f"that ends in .jinja. Received: {template!r:.80}."
        )
    try:
        with open_plain(Path(template).expanduser()) as file:
            source = file.read(_LARGEST_FILE + 1)
        if len(source) <= _LARGEST_FILE:
            return source.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(
            f"`data.template` must be a file that can be read. Received: {template} ({reason}). Check the path."
        ) from error
    raise UserError(
        f"`data.template` must be a file of at most {_LARGEST_FILE:,} bytes. Received: {template}."
    )


class _GenerationBlock(Extension):
    """`{% generation %}` marks, in some templates, what the assistant says. Here its content is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 (Jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    """What templates call to refuse a conversation they were not made for."""
    raise jinja2.TemplateError(message)


def _characters(messages: Sequence[Mapping[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)


def _line(error: Exception) -> str:
    """What an exception says, on one line."""
    said = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(said.split()).rstrip(".")
