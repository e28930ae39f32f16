"""Copies of a recipe with other values: options of the command line, `--set`, arms of a study."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_mtp.errors import UserError
from keras_mtp.recipe.keys import documented_fields, known
from keras_mtp.recipe.recipe import Recipe
from keras_mtp.recipe.toml import from_tables


def updated(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A copy with other values by dotted key: `updated(recipe, {"heads.count": 2})`."""
    tables = dataclasses.asdict(recipe)
    for key, value in values.items():
        *table, name = known(key).split(".")
        (tables[table[0]] if table else tables)[name] = value
    return from_tables(tables)


def with_options(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """A copy with the options that were given, by the fields they set; None means that one was not."""
    return updated(recipe, {key: value for key, value in options.items() if value is not None})


def apply_overrides(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """A copy with `a.b=c` assignments applied, as `--set` takes them. Values are TOML; bare words are strings."""
    values = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not key:
            raise UserError(f"`--set` must look like heads.count=2. Received: --set {assignment!r:.80}.")
        values[key] = _value(known(key), text)
    return updated(recipe, values)


def _value(key: str, text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}").get("value")
    except (ValueError, RecursionError):
        return text
    # `--set data.source=2024` means a folder of that name.
    return text if dict(documented_fields())[key].type is str and not isinstance(value, str) else value
