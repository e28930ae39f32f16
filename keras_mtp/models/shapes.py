"""The sizes of published Llamas by name, from shapes.toml: what a plan needs of a model that is not there."""

import tomllib
from functools import cache
from pathlib import Path

from keras_mtp.errors import UserError
from keras_mtp.models.llama import LlamaSizes, RopeScaling

FILE = Path(__file__).with_suffix(".toml")


def shape(name: str) -> LlamaSizes:
    """The sizes of a published Llama: `shape("llama3.2_1b")`.

    Raises:
        UserError: no such name in shapes.toml.
    """
    known = shapes()
    if name not in known:
        raise UserError(f"A model's shape must be one of {', '.join(known)}. Received: {name!r:.80}.")
    return known[name]


@cache
def shapes() -> dict[str, LlamaSizes]:
    """All of them, in the order of the file."""
    return {name: _sizes(dict(entry)) for name, entry in tomllib.loads(FILE.read_text("utf-8")).items()}


def _sizes(entry: dict) -> LlamaSizes:
    scaling = entry.pop("rope_scaling", None)
    return LlamaSizes(**entry, rope_scaling=scaling and RopeScaling(**scaling))
