"""Dotted keys, as in `heads.count`: those that a recipe has, and those of nested tables."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from keras_mtp.errors import UserError
from keras_mtp.recipe.recipe import Recipe
from keras_mtp.recipe.spelling import closest
from keras_mtp.recipe.table import Table


def documented_fields() -> Iterator[tuple[str, dataclasses.Field]]:
    """Every field with its dotted key, in the order of definition."""
    for spec in dataclasses.fields(Recipe):
        if isinstance(spec.default, Table):
            yield from ((f"{spec.name}.{inner.name}", inner) for inner in dataclasses.fields(spec.default))
        else:
            yield spec.name, spec


def flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables by dotted key: `("heads.count", 2)`."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def known(key: str) -> str:
    """The dotted key itself; a `UserError` if no recipe has it."""
    keys = [name for name, _ in documented_fields()]
    if key in keys:
        return key
    tables = {name.partition(".")[0]: name for name in reversed(keys) if "." in name}
    if key in tables:
        raise UserError(f"`{key}` is a table: set one of its fields, such as `{tables[key]}`.")
    fields = {name.rpartition(".")[2]: name for name in keys}
    close = closest(key, [*keys, *tables]) or closest(key.rpartition(".")[2], fields)
    raise UserError(f"Unknown key `{key:.80}`.{close or ' `keras-mtp recipes --fields` lists all keys.'}")
