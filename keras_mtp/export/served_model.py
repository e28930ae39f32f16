"""A SavedModel as a server holds it: read without Keras, asked pass by pass. What it must know besides stands in a file.

keras_mtp.json    the model's name, its sizes, its tokenizer's special tokens, and a prompt with the right answer
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from keras_mtp import backend
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError

ABOUT, TOKENIZER, TEMPLATE = "keras_mtp.json", "tokenizer.json", "chat_template.jinja"
SAVED_MODEL = "saved_model.pb"
LIKELIEST = 20  # tokens of each place that `score` names, as many as OpenAI's API can ask for


@dataclass(frozen=True, kw_only=True)
class About:
    """What a server must know of an exported model.

    Args:
        base: the pretrained model that was tuned. vocabulary_size: V.
        context_length: the longest text in tokens, prefix not counted, that the model was made for; None if nobody knows.
        tokenizer: the arguments of `Tokenizer` that stand in no other file.
        golden_prompt, golden_answer: token ids, an answer that was compared with the model's own.
    """

    base: str
    vocabulary_size: int
    context_length: int | None
    tokenizer: dict[str, Any]
    golden_prompt: list[int]
    golden_answer: list[int]

    def write(self, folder: Path) -> None:
        (folder / ABOUT).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "About":
        """Raises `UserError` where there is none, or one of another version."""
        if not (folder / SAVED_MODEL).is_file():
            raise UserError(
                f"`DIR` must be a folder that `keras-mtp export RUN DIR` wrote. Received: {folder}, which has no {SAVED_MODEL}."
            )
        try:
            return cls(**json.loads((folder / ABOUT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"`DIR` must hold a {ABOUT} of this version. Received: {folder} ({type(error).__name__}). Export the run again."
            ) from error


def read_tokenizer(folder: Path, about: About) -> Tokenizer:
    """The exported model's tokenizer, chat template included."""
    template = folder / TEMPLATE
    return Tokenizer(
        tokenizers.Tokenizer.from_file(str(folder / TOKENIZER)),
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
        **about.tokenizer,
    )


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """How the tokens of some rows are chosen.

    Args:
        stop_ids: which end an answer. uniforms: (B, R), the numbers of each row's next R tokens. temperature, top_p: (B,).
    """

    stop_ids: np.ndarray
    uniforms: np.ndarray
    temperature: np.ndarray
    top_p: np.ndarray

    def tensors(self) -> dict[str, Any]:
        """Inputs of `prefill` and `step`."""
        tf = backend.tensorflow()
        dtypes = {"stop_ids": "int32"}
        return {name: tf.constant(x, dtypes.get(name, "float32")) for name, x in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a pass said: the new tokens of every row, its stop token included, and how many more it may have."""

    tokens: list[list[int]]
    room: np.ndarray


class ServedModel:
    """The signatures of a SavedModel.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path):
        tf = backend.tensorflow()
        self._loaded = tf.saved_model.load(str(folder))
        self.signatures = self._loaded.signatures
        inputs = self.inputs("step")
        # K, and R: what a pass can say of a row, and reads of it.
        self.said_per_pass = self.signatures["step"].structured_outputs["tokens"].shape[1]
        self.width = inputs["uniforms"].shape[1]
        self.state_names = [name for name in inputs if name in ("ids", "at") or name.startswith("cache_")]

    def inputs(self, signature: str) -> dict[str, Any]:
        """The specifications of a signature's inputs."""
        # A SavedModel has them in no order that lasts from one loading to the next.
        return dict(sorted(self.signatures[signature].structured_input_signature[1].items()))

    def prefill(self, prompts: Sequence[Sequence[int]], room: Sequence[int], choosing: Choosing):
        """Reads prompts: `(state, told)`."""
        tf = backend.tensorflow()
        said = self.signatures["prefill"](
            token_ids=tf.constant(padded(prompts)),
            lengths=tf.constant([len(prompt) for prompt in prompts], "int32"),
            room=tf.constant(room, "int32"),
            **choosing.tensors(),
        )
        return self._split(said)

    def step(self, state: dict[str, Any], room: np.ndarray, choosing: Choosing, *, speculate: bool):
        """One pass: `(state, told)`."""
        tf = backend.tensorflow()
        said = self.signatures["step"](
            room=tf.constant(room, "int32"), speculate=tf.constant(speculate), **choosing.tensors(), **state
        )
        return self._split(said)

    def _split(self, said: dict[str, Any]):
        tokens = said["tokens"].numpy()
        told = Told(tokens=[row[row >= 0].tolist() for row in tokens], room=said["room"].numpy())
        return {name: said[name] for name in self.state_names}, told

    def answer(
        self, prompts: Sequence[Sequence[int]], *, longest: int, stop_ids: Sequence[int], speculate: bool
    ) -> list[list[int]]:
        """Greedy answers, pass by pass, without their stop tokens: what `generate` says."""

        def choosing(rows: int) -> Choosing:
            numbers = np.zeros((rows, self.width))
            return Choosing(
                stop_ids=np.array(stop_ids),
                uniforms=numbers,
                temperature=numbers[:, 0],
                top_p=numbers[:, 0] + 1,
            )

        state, told = self.prefill(prompts, [longest] * len(prompts), choosing(len(prompts)))
        answers = [list(row) for row in told.tokens]
        while told.room.any():
            state, told = self.step(state, told.room, choosing(len(told.room)), speculate=speculate)
            for answer, new in zip(answers, told.tokens, strict=True):
                answer += new
        return [a[:-1] if a and a[-1] in stop_ids else a for a in answers[: len(prompts)]]


def padded(prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """int32 (B, T), zeros on the right."""
    ids = np.zeros((len(prompts), max(map(len, prompts))), "int32")
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return ids
