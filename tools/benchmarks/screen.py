"""Where tables and progress go."""

import os

from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """As wide as the terminal; in a file or a pipe as wide as the tables need."""
    output = Console(stderr=stderr, highlight=False)
    if not output.is_terminal and "COLUMNS" not in os.environ:
        output.width = 132
    return output
