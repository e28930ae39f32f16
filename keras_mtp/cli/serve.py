"""`keras-mtp serve`: a server of an exported model."""

from pathlib import Path
from typing import Any

import click

from keras_mtp.errors import UserError
from keras_mtp.limits import Limits


@click.command(short_help="Serve an exported model: OpenAI's API, TensorFlow Serving's, a page.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for everybody."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any free one."
)
@click.option("--name", help="What clients call the model. Default: the folder's name.")
@click.option(
    "--speculate/--plain",
    default=True,
    show_default=True,
    help="Whether the heads draft. The tokens are the same.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=Limits.max_batch,
    show_default=True,
    help="Answers that are given at the same time.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=Limits.max_queue,
    show_default=True,
    help="Further ones that may wait; the next is told to come again later.",
)
@click.option(
    "--max-length",
    metavar="TOKENS",
    type=click.IntRange(min=2),
    help="Longest prompt with its answer. Default: what the model was made for.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=Limits.max_new_tokens,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(min=1),
    default=Limits.max_body_bytes,
    show_default=True,
    help="Longest request.",
)
@click.option(
    "--drain-seconds",
    type=click.IntRange(min=0),
    default=Limits.drain_seconds,
    show_default=True,
    help="How long answers may go on when the server is told to end.",
)
def serve(folder: Path, host: str, port: int, name: str | None, **options: Any) -> None:
    """Serve a folder that `keras-mtp export RUN DIR` wrote, until it is interrupted.

    Needs TensorFlow and the extra "serve", not Keras. Nobody is asked for a password: on another host than 127.0.0.1
    everybody who reaches it may ask.
    """
    try:
        from keras_mtp import serve as server
    except ImportError as error:
        raise UserError(
            f'`serve` needs what is not installed ({error.name}). Run: pip install "keras_mtp[serve,tensorflow]"'
        ) from error
    server.run(folder, host=host, port=port, name=name, **options)
