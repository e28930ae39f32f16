"""What is decoded by whom, and what one decoding came to. The same for every system."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Prompts = Sequence[Sequence[int]]  # token ids, all rows of one length


@dataclass(frozen=True, kw_only=True)
class System:
    """Who decodes.

    Args:
        name: a key of `decoders.DECODERS`. backend: one of `keras_mtp.backend.BACKENDS`, or "llama.cpp".
        dtype: "float32" or "bfloat16", of weights and computation.
    """

    name: str
    backend: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}, {self.backend}, {self.dtype}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """How much is decoded together: so many prompts of `context` tokens each."""

    batch: int
    context: int

    def __str__(self) -> str:
        return f"batch {self.batch}, context {self.context}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """The same for every system.

    Args:
        model: a model's name or path. path: of its weights. run: whose prefix and heads ours decodes with, if any.
        new_tokens: to be decoded per row, after the one that reading the prompt gives.
        weights: that a pass reads: the blocks' and the unembedding's. vocabulary_size: tokens there are.
        gguf: by dtype, the file of the same weights that llama.cpp reads; empty where it is not measured.
        prompts: by case.
    """

    model: str
    path: Path
    run: Path | None
    new_tokens: int
    weights: int
    vocabulary_size: int
    gguf: Mapping[str, Path]
    prompts: Mapping[Case, Prompts]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One decoding of a batch.

    Args:
        tokens: new ones of all rows, those left out that came from reading the prompts.
        passes: through the model, on average over the rows. seconds: that they took.
        prefill_seconds: before, from the prompts to the first token; of keras-hub one pass longer.
        extra_bytes: weights read in every pass beyond `Workload.weights`: the heads'.
        first_row: all new tokens of the first row, to see whether systems agree.
    """

    tokens: int
    passes: int
    seconds: float
    prefill_seconds: float
    first_row: Sequence[int]
    extra_bytes: int = 0


Decode = Callable[[Prompts, str], Decoded]  # (prompts, mode)
Answer = Callable[[Prompts], Sequence[Sequence[int]]]  # new tokens of every row


def by_difference(one: Answer, whole: Answer, prompts: Prompts) -> Decoded:
    """Times a decoder that is one compiled program: what `whole` takes beyond `one`, which ends after one token.

    Both read the prompts; what is left are the passes for the other tokens, one each.
    """
    prefill_seconds, first = _timed(one, prompts)
    seconds, rows = _timed(whole, prompts)
    passes = len(rows[0]) - len(first[0])
    return Decoded(
        tokens=passes * len(rows),
        passes=passes,
        seconds=seconds - prefill_seconds,
        prefill_seconds=prefill_seconds,
        first_row=list(rows[0]),
    )


def _timed(answer: Answer, prompts: Prompts) -> tuple[float, Sequence[Sequence[int]]]:
    begun = time.perf_counter()
    rows = answer(prompts)
    return time.perf_counter() - begun, rows
