"""What a command prints: its result alone on standard output."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from keras_mtp.disk import finite


@contextlib.contextmanager
def only_result_on_stdout() -> Iterator[None]:
    """Whatever a library prints while it works goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(value: Any) -> None:
    """The result, for programs. What is no number is null, which JSON has."""
    click.echo(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))
