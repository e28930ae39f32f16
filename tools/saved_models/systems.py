"""The systems that answer questions greedily: a SavedModel's client, and keras_mtp in this process on one of its backends."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from keras_mtp import backend

SAVED_MODEL = "saved_model"
Ids = list[list[int]]


class System(Protocol):
    """Text to token ids, and token ids to those of answers, without their stop token."""

    def encoded(self, question: str) -> list[int]: ...

    def answers(self, prompts: Ids, new_tokens: int) -> Ids: ...


class Client:
    """What an export's README.md tells a client to do, in a process in which Keras cannot be imported.

    Args:
        folder: of the export.

    Raises:
        RuntimeError: Keras is there.
    """

    def __init__(self, folder: Path):
        from keras_mtp.export.without_keras import NoKeras

        sys.meta_path.insert(0, NoKeras())
        require_no_keras()
        import tensorflow as tf
        from transformers import AutoTokenizer

        self.tf = tf
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.generate = tf.saved_model.load(str(folder)).signatures["generate"]
        self.stop_ids = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]

    def encoded(self, question: str) -> list[int]:
        if self.tokenizer.chat_template is None:
            return self.tokenizer.encode(question)
        turns = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)

    def answers(self, prompts: Ids, new_tokens: int) -> Ids:
        from keras_mtp.export.served_model import padded

        tf = self.tf
        said = self.generate(
            token_ids=tf.constant(padded(prompts)),
            lengths=tf.constant([len(prompt) for prompt in prompts], tf.int32),
            max_new_tokens=tf.constant(new_tokens),
            stop_ids=tf.constant(self.stop_ids),
        )
        require_no_keras()
        rows = zip(said["tokens"].numpy(), said["lengths"].numpy(), strict=True)
        return [tokens[:length].tolist() for tokens, length in rows]


class InProcess:
    """The run's model as `keras-mtp generate --speculate` asks it: the way in which a SavedModel answers.

    Args:
        name: of the backend. run: its folder.
    """

    def __init__(self, name: str, run: Path):
        backend.select(name)
        from keras_mtp import runs

        self.model = runs.load(run)

    def encoded(self, question: str) -> list[int]:
        from keras_mtp.data.encoding import encode_prompt

        return encode_prompt(question, self.model.tokenizer)

    def answers(self, prompts: Ids, new_tokens: int) -> Ids:
        return self.model.generate(prompts, max_new_tokens=new_tokens, speculate=True)


def opened(name: str, run: Path, export: Path) -> System:
    """A system by its name: `SAVED_MODEL` or a backend."""
    return Client(export) if name == SAVED_MODEL else InProcess(name, run)


def require_no_keras() -> None:
    """Raises a `RuntimeError` where Keras or keras-hub is imported, or can be."""
    from keras_mtp.export.without_keras import REFUSED

    if there := REFUSED & {name.partition(".")[0] for name in sys.modules}:
        raise RuntimeError(f"A client must do without Keras. Imported: {', '.join(sorted(there))}.")
    for name in ("keras", "keras_hub"):
        try:
            __import__(name)
        except ImportError:
            continue
        raise RuntimeError(f"A client must do without Keras. `import {name}` works.")


def batched(items: Sequence, size: int) -> list[Sequence]:
    """In the order in which they stand, as ragged as that makes them."""
    return [items[start : start + size] for start in range(0, len(items), size)]
