"""`keras-mtp study`: compare arms of a recipe over several seeds."""

from pathlib import Path

import click

from keras_mtp import backend
from keras_mtp.cli.options import (
    backend_option,
    data_option,
    json_option,
    model_option,
    quiet_option,
    set_option,
)
from keras_mtp.cli.output import print_json
from keras_mtp.errors import UserError
from keras_mtp.recipe import apply_overrides, load_recipe, with_options


@click.command(short_help="Compare arms of a recipe over several seeds: does it help?")
@click.argument("name", metavar="NAME|PATH")
@click.option(
    "--arms",
    "arms_name",
    metavar="NAME|PATH",
    default="standard",
    show_default=True,
    help="What to compare: a TOML file of settings by arm, and the grid that each is tuned over.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of every arm.")
@backend_option
@data_option
@model_option("The Llama to start from")
@click.option(
    "--run",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to keep the study; one that was begun there goes on. Default: runs/NAME-study-BACKEND.",
)
@set_option("Change a field of the recipe, for all arms.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
@click.option(
    "--equal",
    type=click.Choice(["steps", "seconds"]),
    default="steps",
    show_default=True,
    help="What all arms get alike: joint steps, or training time, as long as the baseline's, the heads' warm-up counted.",
)
@quiet_option
@json_option
def study(
    name: str,
    arms_name: str,
    seeds: int,
    backend_name: str | None,
    data: str | None,
    model: str | None,
    folder: Path | None,
    assignments: tuple[str, ...],
    jobs: int,
    equal: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compare arms of a recipe: each is tuned over the same grid, then run with several seeds.

    Arms are compared by the held-out loss of head_1, seed by seed and item by item, with intervals over both. Finished
    runs are kept and never made again, so that a study can be cut off and gone on with by the same command.
    """
    from keras_mtp import study as studies
    from keras_mtp.study import page
    from keras_mtp.study.arms import load_arms

    chosen = with_options(load_recipe(name), {"data.source": data, "model.name": model})
    chosen = apply_overrides(chosen, assignments)
    arms = load_arms(arms_name, chosen)
    backend_name = backend.select(backend_name)
    if backend.launched(backend_name):
        raise UserError(
            "`study` must be started as one process: it starts its runs itself, each with the devices of distribution.data. Received: "
            "the variables of one process among several. Start it without them."
        )
    folder = folder or Path("runs") / f"{chosen.name}-study-{backend_name}"
    folder.mkdir(parents=True, exist_ok=True)
    outcome = studies.run(
        chosen, arms, folder, seeds=seeds, backend=backend_name, jobs=jobs, equal=equal, progress=not quiet
    )
    if as_json:
        print_json(outcome.to_json())
        return
    click.echo(outcome.sentence)
    click.echo(f"The whole report: {folder / page.MARKDOWN}")
