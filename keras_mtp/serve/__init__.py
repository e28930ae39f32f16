"""A server of an exported model, on one machine: OpenAI's API, TensorFlow Serving's, and a page to try it.

    app.py        which path leads where; metrics.py counts
    openai_*.py   requests in OpenAI's shape; logprobs.py; tf_serving_api.py: in TensorFlow Serving's; reading.py: bodies
    running.py    the answers of one request, as the event loop sees them
    engine.py     the thread that computes: a bounded queue in front of a batch (batch.py) of answers (answer.py)

It needs TensorFlow and an extra, pip install "keras_mtp[serve]", and no Keras.
"""

import logging
import os
from pathlib import Path
from typing import Any

import click
import uvicorn

from keras_mtp.errors import UserError
from keras_mtp.export.served_model import About, read_tokenizer
from keras_mtp.limits import USUAL_LENGTH, Limits
from keras_mtp.serve.app import make_app
from keras_mtp.serve.engine import Engine
from keras_mtp.serve.metrics import Metrics

# Seconds. Longer than clients keep an idle connection (httpx, and so OpenAI's: 5, which is uvicorn's own choice too: a
# request sent while the server closes its end is lost) and than proxies do (nginx: 60).
IDLE_CONNECTION = 75


def make_engine(
    folder: Path, *, max_length: int | None = None, speculate: bool = True, **limits: Any
) -> Engine:
    """What answers, not yet started.

    Args:
        folder: an exported model. max_length: longest prompt and answer; None for what the model was made for.
        speculate: whether the heads draft.
        limits: the other fields of `Limits`.

    Raises:
        UserError: the folder is not one that `keras-mtp export` wrote.
    """
    about = About.read(folder)
    length = max_length or about.context_length or USUAL_LENGTH
    bounds = Limits(max_length=length, **limits)
    tokenizer = read_tokenizer(folder, about)
    return Engine(folder, about, tokenizer, bounds, Metrics(), speculate=speculate)


def run(folder: Path, *, host: str, port: int, name: str | None = None, **options: Any) -> None:
    """Serves until it is told to end, then lets the answers that are being given end too.

    Args:
        folder: an exported model. host, port: where to listen. name: what clients call the model; the folder's name if None.
        options: of `make_engine`.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it logs every request that a graph refuses
    engine = make_engine(folder, **options)
    name = name or folder.resolve().name
    if "/" in name or ":" in name:
        raise UserError(
            f"`--name` must hold neither / nor :, since it stands in addresses. Received: {name}."
        )
    _Server(make_config(name, engine, host=host, port=port), name, engine).run()


def make_config(name: str, engine: Engine, **address: Any) -> uvicorn.Config:
    """How uvicorn serves.

    Args:
        name: what clients call the model. engine: what answers. address: host and port.
    """
    return uvicorn.Config(
        make_app(name, engine),
        access_log=False,
        log_level="warning",
        timeout_keep_alive=IDLE_CONNECTION,
        timeout_graceful_shutdown=engine.limits.drain_seconds,
        **address,
    )


class _Server(uvicorn.Server):
    """Says where it listens. Told to end, it takes no further connection and finishes what it has begun."""

    def __init__(self, config: uvicorn.Config, name: str, engine: Engine):
        super().__init__(config)
        self.name, self.engine = name, engine

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                click.echo(
                    f"{self.name} at http://{host}:{port} (/ready says when it answers; Ctrl-C ends it)",
                    err=True,
                )
