"""`keras-mtp recipes`: what can be run, and every field of a recipe."""

import json
from typing import Any

import click

from keras_mtp.cli.options import json_option
from keras_mtp.cli.output import print_json
from keras_mtp.recipe import available_recipes, documented_fields, load_recipe


@click.command(short_help="List what can be run, or every field of a recipe.")
@click.option("--fields", is_flag=True, help="List every field of a recipe instead, with its default.")
@json_option
def recipes(fields: bool, as_json: bool) -> None:
    """List the recipes that can be run, or the fields they are made of."""
    rows = _field_rows() if fields else _recipe_rows()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.secho(_assignment(row) if fields else row["name"], bold=True)
        click.echo(click.wrap_text(row["description"], 100, initial_indent="    ", subsequent_indent="    "))


def _recipe_rows() -> list[dict[str, Any]]:
    loaded = [load_recipe(path) for path in available_recipes().values()]
    return [
        {"name": recipe.name, "task": recipe.task, "description": recipe.description} for recipe in loaded
    ]


def _field_rows() -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            "type": spec.type.__name__,  # type: ignore[union-attr]  # never a string: annotations are not postponed
            "default": spec.default,
            "choices": list(spec.metadata.get("choices", ())),
            "description": spec.metadata["doc"],
        }
        for key, spec in documented_fields()
    ]


def _assignment(row: dict[str, Any]) -> str:
    choices = f"   ({' | '.join(row['choices'])})" if row["choices"] else ""
    return f"{row['key']} = {json.dumps(row['default'])}{choices}"
