"""The command line: parses, calls one function, prints. Nothing here decides anything about training.

    recipe.py ...   a file for each command: its options, its function, and what only it needs
    group.py        how a command ends that raised something
    options.py      options that several have
    output.py       results go to standard output, progress and errors to standard error

The backend is chosen before anything imports Keras, so the modules that need it are imported inside the commands; that
also lets `keras-mtp --help` answer at once.
"""

import click

from keras_mtp import __version__, backend
from keras_mtp.cli import evaluate, export, generate, plan, recipe, recipes, serve, study
from keras_mtp.cli.group import Commands


@click.group(
    cls=Commands,
    commands=[
        evaluate.evaluate,
        export.export,
        generate.generate,
        plan.plan,
        recipe.recipe,
        recipes.recipes,
        serve.serve,
        study.study,
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="keras-mtp")
def cli() -> None:
    """Fine-tune a pretrained Llama with a prefix and heads that predict several tokens ahead.

    \b
    Start here:
      keras-mtp recipes                          what can be run
      keras-mtp recipe gsm8k --data builtin      run it; 11 minutes or more on two CPU cores
      keras-mtp plan gsm8k --memory 24GB         what fits, and how long it takes
      keras-mtp recipe jsonl --data my.jsonl     learn from conversations of your own
      keras-mtp generate RUN "PROMPT"            ask the model that came out of it
      keras-mtp export RUN DIR                   write it for a server, or another library
      keras-mtp serve DIR                        serve that: OpenAI's API, TensorFlow Serving's, a page
    """


def main() -> None:
    """Entry point of `keras-mtp`."""
    try:
        cli(prog_name="keras-mtp")
    except SystemExit as end:
        backend.ended(end.code if isinstance(end.code, int) else 1)
        raise
