"""A model's own chat template turns messages into one text.

The template is Jinja2 and comes with the model, so it runs in Jinja2's sandbox, set up as transformers does it
(`transformers/utils/chat_template_utils.py`: trimmed blocks, `raise_exception`, a `tojson` that keeps Unicode).

One name is left out on purpose: `strftime_now`. With it a template puts today's date into the prompt (Llama 3.2
does), and a run judged tomorrow would not see the text it was trained on. Such templates fall back to a fixed date.
"""

import json
from collections.abc import Callable
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from keras_mtp.errors import UserError


def compile_template(source: str) -> Callable[..., str]:
    """Compiles a chat template.

    Args:
        source: the template's text, as the model's files hold it.

    Returns:
        A function of `messages`, `add_generation_prompt` and the special tokens' texts (`bos_token`, ...).

    Raises:
        UserError: the template is broken, here or when it is rendered.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UserError(
            f"The model's chat template is not valid Jinja2: {error}. Use another file."
        ) from error

    def render(**values: Any) -> str:
        try:
            return template.render(tools=None, documents=None, **values)
        except (jinja2.TemplateError, TypeError) as error:
            raise UserError(f"The model's chat template refuses these messages: {error}") from error

    return render


class _GenerationBlock(Extension):
    """`{% generation %}` marks, in some templates, what the assistant says. Here its content is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 (Jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    """What templates call to refuse a conversation they were not made for."""
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Jinja2's own filter escapes characters for HTML, which would change the prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
