"""Options and arguments that several commands have."""

from collections.abc import Callable
from pathlib import Path

import click

from keras_mtp import run_folder
from keras_mtp.backend import BACKENDS


def is_run(ctx: click.Context, parameter: click.Parameter, folder: Path | None) -> Path | None:
    """A callback: refuses a folder that is not a run's."""
    return folder if folder is None else run_folder.require_run(folder)


backend_option = click.option(
    "--backend",
    "backend_name",
    type=click.Choice(BACKENDS),
    help="What Keras runs on. Default: KERAS_BACKEND, else the first of these that is installed.",
)
data_option = click.option(
    "--data",
    metavar="hub|tfds|builtin|PATH",
    help="Where the examples come from: downloaded, generated here, a folder with train.jsonl and test.jsonl (for coqa "
    "train.json and dev.json), or, with the task jsonl, a file of your own.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress.")
run_argument = click.argument("run", type=click.Path(path_type=Path), callback=is_run)


def model_option(explained: str) -> Callable:
    """`--model`, with what a command does with it."""
    kinds = "smollm2-135m, a GGUF file, a folder, hf://org/name, a preset."
    return click.option("--model", metavar="NAME|PATH", help=f"{explained}: {kinds}")


def set_option(explained: str) -> Callable:
    """`--set`, with what a command makes of it."""
    return click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help=explained)
