"""Whether a SavedModel that was written computes what the model does: read back, asked, compared."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_mtp.at_once import PREFILL
from keras_mtp.data.encoding import encode_raw
from keras_mtp.errors import UserError
from keras_mtp.export.served_model import padded

# By compute dtype, how far logits may be apart, as a part of the largest: the same arithmetic, compiled another way. In bfloat16 the
# furthest of SmolLM2's 49,152 were 6e-2 apart, where a place's spread was 2.6e-2 off at the median.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-1, "float16": 5e-3}
# Likewise, how far two tokens may be apart that either program may say: twice as far, in bfloat16 twice that median.
TIE = {"float32": 2e-5, "bfloat16": 5e-2, "float16": 1e-2}
NEW_TOKENS = 24
TEXTS = (
    "Two and two make",
    "Tom has 3 apples and buys 4 more. How many has he now?",
    "Once upon a time there was ",
)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """How a SavedModel compares with the model.

    Args:
        logits_differ_by: the largest difference of two logits, of any head. answers: how many were compared, as one batch and
            one alone. tokens: how many these have. ties: answers that went on otherwise where two tokens were equally likely.
        golden_prompt, golden_answer: token ids, the answer of one alone.
    """

    logits_differ_by: float
    answers: int
    tokens: int
    ties: int
    golden_prompt: list[int] = field(repr=False)
    golden_answer: list[int] = field(repr=False)


def check(model: keras.Model, folder: Path) -> Checked:
    """Compares a SavedModel with the `MTPCausalLM` that it was made from.

    Args:
        model: with its tokenizer; on TensorFlow. folder: of the SavedModel.

    Raises:
        UserError: it cannot be read without Keras, or computes something else; says what.
    """
    prompts = _prompts(model)
    said = _read_back(folder, _questions(prompts, model.tokenizer.eos_ids))
    token_ids = padded(prompts)
    real = np.arange(token_ids.shape[1]) < [[len(prompt)] for prompt in prompts]
    logits = {
        name: ops.convert_to_numpy(ops.cast(x, "float32"))[real] for name, x in model(token_ids).items()
    }
    dtype, largest = model.backbone.compute_dtype, max(np.abs(x).max() for x in logits.values())
    allowed = TOLERANCE[dtype] * largest
    named = {"serving_default/logits": logits["head_1"]} | {f"heads/{k}": x for k, x in logits.items()}
    furthest = 0.0
    for name, expected in named.items():
        apart = float(np.abs(said[name][real] - expected).max())
        furthest = max(furthest, apart)
        if not apart <= allowed:
            _refuse(f"the logits of `{name}` are up to {apart:.2g} apart, and {allowed:.2g} is allowed")
    _check_scores(said["score/logprobs"], logits["head_1"], token_ids, real, allowed)
    expected = model.generate(prompts, max_new_tokens=NEW_TOKENS, speculate=True)
    found = _answers(said, "generate") + _answers(said, "alone")
    ties = 0
    for prompt, want, got in zip([*prompts, prompts[0]], [*expected, expected[0]], found, strict=True):
        ties += _is_tie(model, prompt, want, got, TIE[dtype] * largest)
    return Checked(
        logits_differ_by=furthest,
        answers=len(found),
        tokens=sum(map(len, found)),
        ties=ties,
        golden_prompt=prompts[0],
        golden_answer=found[-1],
    )


def _check_scores(
    found: np.ndarray, logits: np.ndarray, token_ids: np.ndarray, real: np.ndarray, allowed: float
) -> None:
    """By the logits (N, V) of the real places, in float64."""
    logits = logits.astype("float64")
    largest = logits.max(-1, keepdims=True)
    logprobs = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    following = np.pad(token_ids[:, 1:], [(0, 0), (0, 1)])[real]
    apart = float(np.abs(found[real] - logprobs[np.arange(len(following)), following]).max())
    if not apart <= 2 * allowed:
        _refuse(f"the logarithms of `score` are up to {apart:.2g} apart, and {2 * allowed:.2g} is allowed")


def _prompts(model: keras.Model) -> list[list[int]]:
    """Token ids, ragged; the last prompt is longer than what one pass reads."""
    *short, last = (encode_raw(text, model.tokenizer) for text in TEXTS)
    return [*short, (last * (PREFILL // len(last) + 1))[: PREFILL + 1]]


def _questions(prompts: Sequence[Sequence[int]], stop_ids: Sequence[int]) -> dict[str, np.ndarray]:
    return {
        "token_ids": padded(prompts),
        "lengths": np.array([len(prompt) for prompt in prompts], "int32"),
        "max_new_tokens": np.array(NEW_TOKENS, "int32"),
        "stop_ids": np.array(stop_ids, "int32"),
    }


def _read_back(folder: Path, questions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `without_keras.py` found."""
    with tempfile.TemporaryDirectory() as name:
        asked, answered = Path(name) / "questions.npz", Path(name) / "answers.npz"
        np.savez(asked, allow_pickle=False, **questions)
        command = [
            sys.executable,
            "-m",
            "keras_mtp.export.without_keras",
            str(folder),
            str(asked),
            str(answered),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            _refuse(f"a process without Keras cannot read it: {last:.300}")
        with np.load(answered) as said:
            return {key: said[key] for key in said.files}


def _answers(said: dict[str, np.ndarray], name: str) -> list[list[int]]:
    rows = zip(said[f"{name}/tokens"], said[f"{name}/lengths"], strict=True)
    return [row[:length].tolist() for row, length in rows]


def _is_tie(model: keras.Model, prompt: list[int], want: list[int], got: list[int], allowed: float) -> bool:
    """False where two answers are the same, True where they part at tokens that are equally likely; else refuses."""
    if want == got:
        return False
    pairs = enumerate(zip(want, got, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(want), len(got)))
    logits = ops.cast(model(np.array([prompt + want[:place]]))["head_1"][0, -1], "float32")
    # Where an answer has no further token, it said one that ends it.
    said = [[answer[place]] if place < len(answer) else model.tokenizer.eos_ids for answer in (want, got)]
    best, other = (max(ops.convert_to_numpy(logits)[list(tokens)]) for tokens in said)
    apart = best - other
    if not apart <= allowed:
        _refuse(
            f"`generate` says {got[: place + 1]} where the model says {want[: place + 1]}, and that is no tie"
        )
    return True


def _refuse(what: str) -> None:
    raise UserError(
        f"The SavedModel does not do what the model does: {what}. Nothing was kept. Please report it, with the run's recipe."
    )
