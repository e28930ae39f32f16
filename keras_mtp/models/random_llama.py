"""A published Llama's shape with random weights, `random:llama3.2_1b`: what a run would take, before anything is downloaded.

The weights are normal numbers of standard deviation 0.02, as keras-hub begins them; norms' scales are 1. They are drawn by
NumPy from the weight's name, so that they are alike on every backend. The tokenizer is made of bytes: 256 tokens and an end,
whatever the vocabulary; there is no chat template.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from keras_mtp.data.byte_level_bpe import byte_level_bpe
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.models import filling
from keras_mtp.models.licence import Licence
from keras_mtp.models.location import RANDOM
from keras_mtp.models.shapes import shape

if TYPE_CHECKING:
    import keras_hub

_END = "<|endoftext|>"
_DEVIATION = np.float32(0.02)


class RandomLlama:
    """A shape as a source of a model.

    Args:
        name: of the shape, in shapes.toml.

    Raises:
        UserError: no such shape.
    """

    files: tuple[Path, ...] = ()
    licence = Licence(name="none")
    context_length = None

    def __init__(self, name: str) -> None:
        self.sizes = shape(name)
        self._name = name

    @property
    def sha256(self) -> str:
        """Stands for a file's hash: of all that the weights are drawn from."""
        drawn_from = json.dumps([RANDOM, self._name, dataclasses.asdict(self.sizes)], sort_keys=True)
        return hashlib.sha256(drawn_from.encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """Every byte a token."""
        tokens = [*sorted(ByteLevel.alphabet()), _END]
        backend = byte_level_bpe(tokens, [], pre_tokenizer="smollm", special=[_END])
        return Tokenizer(backend, eos_id=tokens.index(_END), pad_id=tokens.index(_END))

    def fill(self, backbone: "keras_hub.models.Llama3Backbone", rounding: str = "none") -> None:
        """Gives a backbone without values its weights."""
        for place in filling.places(backbone):
            place.fill(_draws(place.shape), self._refuse, rounding)

    def _refuse(self, reason: str) -> NoReturn:
        raise UserError(f"{RANDOM}{self._name} cannot be made: {reason}.")


def _draws(shape: tuple[int, ...]) -> filling.Read:
    """Draws the rows of one weight, in order."""
    generators: dict[str, np.random.Generator] = {}

    def rows(name: str, start: int, stop: int) -> np.ndarray:
        if len(shape) == 1:
            return np.ones(stop - start, "float32")
        rng = generators.setdefault(name, np.random.default_rng([*name.encode()]))
        return _DEVIATION * rng.standard_normal((stop - start, *shape[1:]), "float32")

    return rows
