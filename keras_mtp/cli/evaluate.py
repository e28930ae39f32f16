"""`keras-mtp evaluate`: judge a finished run again, or a base model."""

from pathlib import Path
from typing import Any

import click

from keras_mtp import backend
from keras_mtp.cli.options import backend_option, data_option, is_run, json_option, model_option
from keras_mtp.cli.output import only_result_on_stdout, print_json
from keras_mtp.errors import UserError
from keras_mtp.recipe import Recipe, flat, load_recipe, with_options


@click.command(short_help="Judge a finished run again, or a base model.")
@click.argument("run", required=False, type=click.Path(path_type=Path), callback=is_run)
@model_option("The Llama to judge, without a run")
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|PATH",
    help="With --model: the recipe whose data and settings to judge by. Default: gsm8k.",
)
@backend_option
@data_option
@click.option(
    "--limit", type=click.IntRange(min=1), help="Judge on at most this many examples. Default: the recipe's."
)
@click.option(
    "--harness",
    metavar="TASK[,TASK...]",
    help="Ask these tasks of EleutherAI's lm-evaluation-harness instead: names, or YAML files. All of their items, unless "
    "there is a --limit. A RUN's folder gets harness/TASK.json.",
)
@click.option(
    "--harness-path",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="With --harness: a folder with YAML files of further tasks.",
)
@click.option("--chat", is_flag=True, help="With --harness: put the prompts into the model's chat template.")
@click.option(
    "--max-length",
    metavar="TOKENS",
    type=click.IntRange(min=2),
    help="With --harness: cut longer texts on the left. Default: what the model was made for.",
)
@json_option
def evaluate(
    run: Path | None,
    model: str | None,
    recipe_name: str | None,
    backend_name: str | None,
    data: str | None,
    limit: int | None,
    harness: str | None,
    as_json: bool,
    **harness_options: Any,
) -> None:
    """Judge a finished run again, or with --model a base model as it came.

    RUN is the run's folder. Without options the numbers are those of its report, on any backend.
    """
    if harness is None and any(harness_options.values()):
        raise UserError(
            "`--harness-path`, `--chat` and `--max-length` go with --harness. Give its tasks too."
        )
    if harness is not None and data is not None:
        raise UserError(
            "`--data` does not go with --harness: its tasks bring their own. Leave one of them out."
        )
    if (run is None) == (model is None):
        raise UserError("`evaluate` must be given either the folder of a RUN or a --model. Give one of them.")
    if run is not None and recipe_name is not None:
        raise UserError("`--recipe` goes with --model: a RUN has its own. Leave it out.")
    chosen = load_recipe(recipe_name or "gsm8k")
    backend.select(backend_name)
    if harness is not None:
        chosen = with_options(chosen, {"model.name": model})
        _evaluate_harness(run, chosen, as_json, tasks=harness, limit=limit, **harness_options)
        return
    with only_result_on_stdout():
        with backend.first_imports():
            from keras_mtp import runs

        if run is not None:
            result = runs.evaluate(run, data=data, limit=limit)
        else:
            options = {"model.name": model, "data.source": data, "evaluation.limit": limit}
            result = runs.evaluate_base(with_options(chosen, options))
    if as_json:
        print_json(result)
        return
    for key, value in flat(result):
        click.echo(f"{key:<24} {value:.4f}" if isinstance(value, float) else f"{key:<24} {value}")


def _evaluate_harness(
    run: Path | None, base: Recipe, as_json: bool, *, tasks: str, harness_path: Path | None, **options: Any
) -> None:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UserError(f"`--harness` must name at least one task. Received: {tasks!r}.")
    with only_result_on_stdout():
        with backend.first_imports():
            from keras_mtp import harness

        wish = harness.Wish(tasks=names, path=harness_path, **options)
        results = harness.evaluate_base(base, wish) if run is None else harness.evaluate_run(run, wish)
    if as_json:
        print_json([result.to_json() for result in results])
        return
    from rich.console import Console

    Console().print(harness.results.table(results))
