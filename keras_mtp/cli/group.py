"""The group of commands: what any of them raises, a user's mistake above all, ends as one line and an exit code."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click

from keras_mtp.errors import Diverged, Interrupted, UserError

_LONGEST_LINE = 800  # characters of an error


class _Mistake(click.ClickException):
    """A `UserError` as click shows it: one line on standard error."""

    exit_code = 2


class Commands(click.Group):
    """Shows a user's mistake as one line, with exit code 2; a run that diverged, with 3; and ends a command that a signal
    interrupted with 128 and its number."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        with _usage_in_one_line():
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _usage_in_one_line(ctx):
                return super().invoke(ctx)
        except UserError as error:
            raise _Mistake(_one_line(str(error))) from error
        except BrokenPipeError:  # `| head`: click ends it without a word
            raise
        except OSError as error:  # a folder that may not be read or written, a full disk
            said = f"{error.strerror or error}: {error.filename or 'a file of the run'}"
            raise _Mistake(_one_line(said)) from error
        except Diverged as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(3)
        except Interrupted as stopped:
            click.echo(f"\n{stopped}", err=True)
            sys.exit(128 + stopped.number)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            sys.exit(130)


def _one_line(text: str) -> str:
    """What an error says, on one line. It may repeat what stands in a file, and that must not steer a terminal."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    return _shortened("".join(shown))


def _shortened(line: str) -> str:
    """Without its middle, where it is too long to be read: what is wrong comes first, what to do last."""
    return (
        line
        if len(line) <= _LONGEST_LINE
        else f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    )


@contextlib.contextmanager
def _usage_in_one_line(ctx: click.Context | None = None) -> Iterator[None]:
    """click puts two lines about `--help` in front of what is wrong, and does not always know of which command."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "keras-mtp"
        if not error.ctx and ctx and ctx.invoked_subcommand:
            command = f"{ctx.command_path} {ctx.invoked_subcommand}"
        raise _Mistake(f"{error.format_message()} See `{command} --help`.") from error
