"""What a command prints: its result alone on standard output."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import click


@contextlib.contextmanager
def only_result_on_stdout() -> Iterator[None]:
    """Whatever a library prints while it works goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(value: Any) -> None:
    """The result, for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
