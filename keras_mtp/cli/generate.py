"""`keras-mtp generate`: ask a finished run's model."""

import sys
from pathlib import Path
from typing import Any

import click

from keras_mtp import backend
from keras_mtp.cli.options import backend_option, json_option, run_argument
from keras_mtp.cli.output import only_result_on_stdout, print_json
from keras_mtp.errors import UserError


@click.command()
@run_argument
@click.argument("prompt")
@backend_option
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Longest answer, in tokens.",
)
@click.option("--raw", is_flag=True, help="Continue PROMPT as it stands, without the template.")
@click.option(
    "--speculate/--plain",
    default=False,
    help="Let the run's heads draft tokens that are then verified several at a time, or not (the default).",
)
@click.option("--stats", is_flag=True, help="Tell what it cost, on standard error.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.0, max=100.0),
    default=0.0,
    show_default=True,
    help="Draw every token by its probability; 0 takes the likeliest.",
)
@click.option("--top-k", type=click.IntRange(min=0), default=0, help="Draw among so many likeliest tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0.0, max=1.0, min_open=True),
    default=1.0,
    help="Draw among the fewest tokens that have this probability together.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides what is drawn."
)
@click.option("--stop", metavar="TEXT", multiple=True, help="End the answer at this text; repeatable.")
@json_option
def generate(
    run: Path,
    prompt: str,
    backend_name: str | None,
    stats: bool,
    as_json: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    **wish: Any,
) -> None:
    """Let the model of a finished run answer a prompt.

    RUN is the run's folder; PROMPT is what a user would ask: the template that the run was trained with is put around
    it. With --raw PROMPT is the whole input, and markers such as <|im_end|> in it are the tokens they name.
    """
    if not prompt.strip():
        raise UserError(f"`PROMPT` must not be empty. Received: {prompt!r}. Write what to answer.")
    backend.select(backend_name)
    out = sys.stdout
    with only_result_on_stdout():
        with backend.first_imports():
            from keras_mtp import Sampling, runs

        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        on_text = None if as_json else lambda _, text: click.echo(text, file=out, nl=False)
        completion, statistics = runs.answer(run, prompt, sampling=sampling, on_text=on_text, **wish)
    if as_json:
        print_json(
            {"prompt": prompt, "completion": completion}
            | ({"statistics": statistics.to_json()} if stats else {})
        )
    else:
        click.echo()
        if stats:
            click.echo(statistics.summary(), err=True)
