"""`keras-mtp export`: write a finished run's model for other programs."""

from pathlib import Path

import click

from keras_mtp import backend, run_folder
from keras_mtp.cli.options import json_option, run_argument
from keras_mtp.cli.output import only_result_on_stdout, print_json
from keras_mtp.export import formats
from keras_mtp.export.folder import require_absent
from keras_mtp.recipe import load_recipe


@click.command(short_help="Write a finished run's model for a server, or for another library.")
@run_argument
@click.argument(
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    callback=lambda ctx, parameter, folder: require_absent(folder),
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(formats.FORMATS)),
    default=formats.DEFAULT,
    show_default=True,
    help=formats.described(),
)
@json_option
def export(run: Path, folder: Path, form: str, as_json: bool) -> None:
    """Write the model of a finished run so that other programs can run it without Keras.

    RUN is the run's folder, whatever backend trained it. DIR is made, and only after another program has read back what was
    written and has said what the model says; its README.md has a client to copy.
    """
    for note in formats.require(form, load_recipe(run / run_folder.RECIPE)):
        click.echo(note, err=True)
    backend.select(formats.FORMATS[form].backend)
    with only_result_on_stdout():
        with backend.first_imports():
            from keras_mtp import runs

        exported = runs.export(run, folder, form)
    if as_json:
        print_json(exported.to_json())
    else:
        click.echo(exported.summary())
