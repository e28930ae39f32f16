"""A recipe from TOML, and TOML from a recipe."""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_mtp.errors import UserError
from keras_mtp.recipe.keys import known
from keras_mtp.recipe.recipe import Recipe
from keras_mtp.recipe.table import Table
from keras_mtp.untrusted import open_plain

_LARGEST_FILE = 1 << 20  # bytes; more is no recipe
_MOST_DOTS = 100  # on a line, strings aside; a table of numbers to try has some ten
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'')
_SEVERAL_LINES = re.compile("'''|\"\"\"")


def from_toml(text: str, origin: str) -> Recipe:
    """Makes a recipe from TOML; `origin` says in errors where the text came from."""
    tables = parse_toml(text, origin)
    try:
        return from_tables(tables)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def read_text(path: Path, what: str) -> str:
    """The text of a TOML file; `what` says in errors what it should be: "A recipe"."""
    try:
        with open_plain(path) as file:
            content = file.read(_LARGEST_FILE + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}.") from error
    if len(content) > _LARGEST_FILE:
        raise UserError(f"{what} must be at most 1 MiB of TOML. Received: {path}, which is larger.")
    return text


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """The tables of a TOML text. A key of n parts takes Python n^2 steps, hours for a file of nothing else."""
    if any(_dots(line) > _MOST_DOTS for line in text.splitlines() if line.lstrip()[:1] != "#"):
        raise UserError(
            f"{origin} is not valid TOML for a recipe: it has more than {_MOST_DOTS} dots on a line."
        )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers too long and brackets too deep
        raise UserError(f"{origin} is not valid TOML: {error}.") from error


def _dots(line: str) -> int:
    """Those outside of strings; where a string of several lines begins or ends, all of them."""
    return (line if _SEVERAL_LINES.search(line) else _STRING.sub("", line)).count(".")


def to_toml(recipe: Recipe) -> str:
    """The whole recipe with every default written out; `from_toml` gives the same recipe back."""
    import tomli_w  # here, since only a run needs to write one

    text = tomli_w.dumps(dataclasses.asdict(recipe))
    return text.replace(
        "'''", r"\u0027\u0027\u0027"
    )  # each string is on one line, and `_dots` can tell where it ends


def from_tables(tables: Mapping[str, Any]) -> Recipe:
    """Makes a recipe from nested tables, as TOML has them; what they leave out takes the defaults.

    Raises:
        UserError: an unknown key, or a value that cannot be.
    """
    values = dict(tables)
    sections = {
        spec.name: spec.default for spec in dataclasses.fields(Recipe) if isinstance(spec.default, Table)
    }
    for key, value in tables.items():
        if key not in sections:
            known(key)
        elif isinstance(value, dict):
            for name in value:
                known(f"{key}.{name}")
            values[key] = dataclasses.replace(sections[key], **value)
        else:
            raise UserError(
                f"`{key}` must be a table: [{key}] and its fields below. Received: {key}={value!r:.80}."
            )
    return Recipe(**values)
