"""What a program that is not ours says of an export: asked in a process of its own, compared with what the model says.

questions    token_ids/batch, token_ids/alone    texts of unlike length, padded on the right; one of them alone
             texts                               for its tokenizer, if it reads one
answers      logits/batch, logits/alone          of the next token
             plain/0, ... chat/0, ...            token ids of the texts; as a user's turn in the chat template
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_mtp.data.encoding import encode_prompt, encode_raw
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.export.check import TEXTS, TOLERANCE
from keras_mtp.export.served_model import padded

# As there, but another program's arithmetic in float32: it may add LoRA to a product, where Keras adds it to the matrix.
ALLOWED = TOLERANCE | {"float32": 2e-5}
LONGEST = 80  # tokens, of the longest text that is asked
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How what a program says compares with what the model says.

    Args:
        logits_differ_by: the largest difference of two logits. logits_up_to: the largest logit.
        places: how many tokens' logits were compared.
    """

    logits_differ_by: float
    logits_up_to: float
    places: int


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the model itself says, computed before its export touches it.

    Args:
        token_ids: what was asked, by name. real: where it is no padding. logits: float32, of the real places.
    """

    token_ids: dict[str, np.ndarray]
    real: dict[str, np.ndarray]
    logits: dict[str, np.ndarray]

    @property
    def questions(self) -> dict[str, np.ndarray]:
        """For a program."""
        return {f"token_ids/{name}": ids for name, ids in self.token_ids.items()}


def expected(model: keras.Model) -> Expected:
    """Asks an `MTPCausalLM` with its tokenizer."""
    *short, last = (encode_raw(text, model.tokenizer) for text in TEXTS)
    prompts = [*short, (last * LONGEST)[:LONGEST]]
    batches = {"batch": prompts, "alone": prompts[:1]}
    token_ids = {name: padded(rows) for name, rows in batches.items()}
    real = {
        name: np.arange(token_ids[name].shape[1]) < [[len(row)] for row in rows]
        for name, rows in batches.items()
    }
    logits = {name: logits_of(model, ids)[real[name]] for name, ids in token_ids.items()}
    return Expected(token_ids=token_ids, real=real, logits=logits)


def logits_of(model: keras.Model, token_ids: np.ndarray) -> np.ndarray:
    """What `head_1` says: float32 (B, T, V)."""
    return ops.convert_to_numpy(ops.cast(model(token_ids)["head_1"], "float32"))


def asked(program: str, places: Sequence[Path], questions: Arrays) -> dict[str, np.ndarray]:
    """What a module of this package answers, run as a program of its own.

    Args:
        program: its name, such as "in_transformers". places: its arguments after the two files.
        questions: arrays by name.

    Raises:
        UserError: it failed; says how.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "questions.npz", Path(folder) / "answers.npz"
        np.savez(files[0], allow_pickle=False, **questions)
        command = [sys.executable, "-m", f"{__package__}.{program}", *map(str, (*files, *places))]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}  # all it needs is here
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, env=environment
        )
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            _refuse(f"the program that is to read it fails: {last:.300}")
        with np.load(files[1]) as said:
            return {key: said[key] for key in said.files}


def compare_logits(said: Arrays, want: Expected, dtype: str) -> Agreement:
    """Refuses logits that are not the model's.

    Args:
        said: by a program. want: what the model says. dtype: that it computes in, which decides how far apart they may be.

    Raises:
        UserError: they are further apart.
    """
    largest = max(float(np.abs(x).max()) for x in want.logits.values())
    allowed, furthest = ALLOWED[dtype] * largest, 0.0
    for name, logits in want.logits.items():
        apart = float(np.abs(said[f"logits/{name}"][want.real[name]] - logits).max())
        furthest = max(furthest, apart)
        if not apart <= allowed:
            _refuse(f"the logits ({name}) are up to {apart:.2g} apart, and {allowed:.2g} is allowed")
    places = sum(int(real.sum()) for real in want.real.values())
    return Agreement(logits_differ_by=furthest, logits_up_to=largest, places=places)


def compare_tokens(said: Arrays, tokenizer: Tokenizer) -> None:
    """Refuses token ids of `TEXTS`, or of chats, that are not the tokenizer's.

    Raises:
        UserError: they are others.
    """
    ways: dict[str, Callable[[str, Tokenizer], list[int]]] = {"plain": encode_raw}
    if tokenizer.chat_template is not None:
        ways["chat"] = encode_prompt
    for way, encode in ways.items():
        for place, text in enumerate(TEXTS):
            got, want = said[f"{way}/{place}"].tolist(), encode(text, tokenizer)
            if got != want:
                _refuse(f"the tokens of {text!r} ({way}) are {got} where the model's are {want}")


def _refuse(what: str) -> None:
    raise UserError(
        f"The export does not do what the model does: {what}. Nothing was kept. Please report it, with the run's recipe."
    )
