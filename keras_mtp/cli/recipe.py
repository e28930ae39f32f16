"""`keras-mtp recipe`: train and judge a model."""

import contextlib
from datetime import datetime
from pathlib import Path

import click

from keras_mtp import backend, run_folder
from keras_mtp.cli.options import (
    backend_option,
    data_option,
    json_option,
    model_option,
    quiet_option,
    set_option,
)
from keras_mtp.cli.output import only_result_on_stdout, print_json
from keras_mtp.errors import UserError
from keras_mtp.recipe import Recipe, apply_overrides, load_recipe, with_options


@click.command()
@click.argument("name", metavar="[NAME|PATH]", required=False)
@backend_option
@data_option
@model_option("The Llama to start from")
@click.option(
    "--task",
    metavar="gsm8k|coqa|instruct|jsonl",
    help="What to train for, if not what the recipe says; jsonl learns from conversations of your own. Without NAME it "
    "picks the recipe too.",
)
@click.option(
    "--from",
    "start",
    metavar="RUN",
    help="Start from what a finished run trained, and its heads; with a higher heads.count, add heads to it.",
)
@click.option(
    "--run",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where to keep the run. Default: runs/NAME-BACKEND-TIME.",
)
@set_option(
    "Change a field of the recipe, such as heads.count=2; may be given several times. "
    "`keras-mtp recipes --fields` lists them."
)
@quiet_option
@json_option
def recipe(
    name: str | None,
    backend_name: str | None,
    data: str | None,
    task: str | None,
    model: str | None,
    start: str | None,
    folder: Path | None,
    assignments: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Train and judge a model as a recipe says.

    NAME is one that `keras-mtp recipes` lists; PATH is a TOML file of your own. The run's folder gets the recipe as it
    was run, the losses of every step, a checkpoint, a report and its curves. A run that was cut off goes on by the same
    command, with --run, to the same result.
    """
    if name is None and task is None:
        raise UserError("`recipe` needs NAME, PATH or --task. `keras-mtp recipes` lists the names.")
    options = {"task": task, "data.source": data, "model.name": model, "start.run": start}
    chosen = with_options(
        load_recipe(name or task or ""), options | ({"start.checkpoint": ""} if start else {})
    )
    chosen = apply_overrides(chosen, assignments)
    backend_name = backend.select(backend_name)
    folder = folder or folder_name(chosen, backend_name)
    alone = chosen.distribution.data * chosen.distribution.model == 1
    # Before anything slow is imported; of several processes, which know of each other only later, one claims it.
    with only_result_on_stdout(), run_folder.claimed(folder) if alone else contextlib.nullcontext():
        with backend.first_imports():
            from keras_mtp import pipeline

        result = pipeline.run(chosen, folder, progress=not quiet)
    if not backend.speaks():
        return
    if as_json:
        print_json(result.to_json())
        return
    from keras_mtp.report import page

    click.echo(page.summary(result))
    click.echo(f"The whole report: {folder / run_folder.REPORT_PAGE}")


def folder_name(recipe: Recipe, backend_name: str) -> Path:
    """Where a run is kept for which no place was named."""
    return Path("runs") / f"{recipe.name}-{backend_name}-{datetime.now():%Y%m%d-%H%M%S}"
