"""Times the loss and its gradient, and measures its memory: ours beside full logits and Keras' own loss.

Hidden states of D = 576 and a tied, frozen unembedding of V = 49152, as SmolLM2-135M has them, half of the positions
labelled. Every measurement is a process of its own. Memory is what the call took at most beyond what was there before:
on JAX what XLA plans for the compiled program, its outputs included; elsewhere the peak of resident memory, in which
stands what TensorFlow needs to trace the function (on a GPU the allocator's). The gradients of the hidden states, N·D for
each head, nobody can do without: "beyond" is without them, and "ratio" is that of all logits to it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
from rich.table import Table

from keras_mtp import backend, memory
from keras_mtp.backend import BACKENDS
from tools.benchmarks import machine
from tools.benchmarks.screen import console

HIDDEN_DIM, VOCABULARY = 576, 49152
SIZES = ((8, 128), (8, 512))
HEADS = (1, 4)
METHODS = ("lean", "naive")
PACKAGES = ("keras", "jax", "tensorflow", "torch")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: the loss of so many heads on (rows, tokens) positions."""

    method: str
    backend: str
    dtype: str
    heads: int
    rows: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.method}, {self.backend}, {self.dtype}, {self.rows} x {self.tokens}, heads {self.heads}"

    @property
    def logits_bytes(self) -> int:
        """Size of all logits in float32."""
        return 4 * self.heads * self.rows * self.tokens * VOCABULARY

    @property
    def gradients_bytes(self) -> int:
        """Size of the gradients of the hidden states."""
        width = 4 if self.dtype == "float32" else 2
        return width * self.heads * self.rows * self.tokens * HIDDEN_DIM


@dataclass(frozen=True, kw_only=True)
class Found:
    """seconds: median of the repeats, compilation left out. peak_bytes: beyond what was there before the call."""

    seconds: float
    peak_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32",))
    parser.add_argument("--heads", nargs="+", type=int, default=HEADS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the smaller size only, three repeats")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")


def run(options: argparse.Namespace) -> None:
    """Measures, shows a table, and writes JSON."""
    progress = console(stderr=True)
    repeats = min(options.repeats, 3) if options.quick else options.repeats
    found: dict[Case, Found] = {}
    for case in cases(options):
        if not _fits(case):
            progress.print(f"{case}: left out, memory is short")
            continue
        try:
            # A process each: memory once taken would hide what the next one takes.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[case] = pool.submit(_measure, case, repeats).result()
        except BrokenProcessPool:
            progress.print(f"{case}: ended early, out of memory probably")
            continue
        progress.print(f"{case}: {found[case].seconds:.3f} s")
    _show(found)
    if options.json:
        numbers = {
            "rows": [asdict(case) | asdict(value) for case, value in found.items()],
            "machine": machine.describe(PACKAGES),
            "command": " ".join(sys.argv),
        }
        options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Ours and the naive one next to each other, smaller ones first."""
    for rows, tokens in SIZES[:1] if options.quick else SIZES:
        for name in options.backends:
            for dtype in options.dtypes:
                for heads in options.heads:
                    for method in METHODS:
                        yield Case(
                            method=method, backend=name, dtype=dtype, heads=heads, rows=rows, tokens=tokens
                        )


def _fits(case: Case) -> bool:
    """Whether the naive loss has room: logits, what their softmax keeps, and the gradients of both."""
    available = machine.available_bytes()
    return case.method == "lean" or available is None or 4 * case.logits_bytes < available


def _measure(case: Case, repeats: int) -> Found:
    backend.select(case.backend)
    with backend.first_imports():
        import keras

    layer = keras.layers.ReversibleEmbedding(VOCABULARY, HIDDEN_DIM, tie_weights=True, dtype=case.dtype)
    layer.build()
    layer.trainable = False
    states, targets, weights = _draw(case)
    step = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[case.backend]
    call, planned_bytes = step(_LOSSES[case.method](layer, targets, weights), states, layer.embeddings)
    machine.reset_peak()
    resident = memory.resident_bytes()
    call()  # compiles or traces; and counts as memory, since TensorFlow keeps what it once took
    found = [_seconds(call) for _ in range(repeats)]
    peak = machine.peak_bytes(case.backend, resident) if planned_bytes is None else planned_bytes
    return Found(seconds=median(found), peak_bytes=peak)


def _draw(case: Case):
    """Hidden states of every head in the backend's tensors, targets, and weights that sum to one."""
    from keras import ops

    rng = np.random.default_rng(0)
    shape = (case.rows, case.tokens)
    states = [
        ops.cast(rng.standard_normal((*shape, HIDDEN_DIM), "float32"), case.dtype) for _ in range(case.heads)
    ]
    targets = rng.integers(0, VOCABULARY, shape).astype("int32")
    weights = (np.arange(case.tokens) >= case.tokens // 2) / (case.rows * case.tokens / 2)
    return states, targets, np.broadcast_to(weights, shape).astype("float32")


def _lean(layer, targets, weights) -> Callable:
    from keras_mtp.losses import LinearCrossEntropy

    loss = LinearCrossEntropy(layer)
    return lambda states: sum(loss(targets, state, weights) for state in states)


def _naive(layer, targets, weights) -> Callable:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum", dtype="float32")
    return lambda states: sum(loss(targets, layer(state, reverse=True), weights) for state in states)


_LOSSES = {"lean": _lean, "naive": _naive}


def _jax(loss: Callable, states, embeddings) -> tuple[Callable, int | None]:
    import jax
    import keras

    def stateless(states, table):
        with keras.StatelessScope(state_mapping=[(embeddings, table)]):
            return loss(states)

    compiled = jax.jit(jax.value_and_grad(stateless)).lower(states, embeddings.value).compile()
    plan = compiled.memory_analysis()
    call = lambda: jax.block_until_ready(compiled(states, embeddings.value))  # noqa: E731
    return call, plan.temp_size_in_bytes + plan.output_size_in_bytes


def _tensorflow(loss: Callable, states, embeddings) -> tuple[Callable, int | None]:
    import tensorflow as tf

    @tf.function(autograph=False)
    def value_and_gradients(states):
        with tf.GradientTape() as tape:
            tape.watch(states)
            value = loss(states)
        return value, tape.gradient(value, states)

    return lambda: value_and_gradients(states)[0].numpy(), None


def _torch(loss: Callable, states, embeddings) -> tuple[Callable, int | None]:
    import torch

    leaves = [state.detach().requires_grad_() for state in states]

    def call():
        value = loss(leaves)
        torch.autograd.grad(value, leaves)
        return value.item()

    return call, None


def _seconds(call: Callable) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _show(found: dict[Case, Found]) -> None:
    table = Table(
        title=f"Loss and gradient, D = {HIDDEN_DIM}, V = {VOCABULARY}, half of the positions labelled"
    )
    for heading in ("loss", "backend", "dtype", "B x T"):
        table.add_column(heading)
    for heading in ("heads", "seconds", "peak MB", "beyond MB", "logits MB", "ratio"):
        table.add_column(heading, justify="right")
    for case, value in found.items():
        beyond = max(value.peak_bytes - case.gradients_bytes, 0)
        table.add_row(
            case.method,
            case.backend,
            case.dtype,
            f"{case.rows} x {case.tokens}",
            str(case.heads),
            f"{value.seconds:.3f}",
            f"{value.peak_bytes / 1e6:.0f}",
            f"{beyond / 1e6:.0f}",
            f"{case.logits_bytes / 1e6:.0f}",
            f"{case.logits_bytes / beyond:.1f}" if beyond else "",
        )
    output = console()
    output.print(table)
    for line in lines(found):
        output.print(line)


def lines(found: dict[Case, Found]) -> Iterator[str]:
    """What the measurements come to: speed beside the naive loss, and the memory of several heads beside one's."""
    by_key = {(c.backend, c.dtype, c.rows, c.tokens, c.heads, c.method): (c, v) for c, v in found.items()}
    for (name, dtype, rows, tokens, heads, method), (case, value) in by_key.items():
        if method != "lean":
            continue
        label = f"{name} {dtype}, {rows} x {tokens}, heads {heads}:"
        naive = by_key.get((name, dtype, rows, tokens, heads, "naive"))
        if naive:
            yield f"{label} {naive[1].seconds / value.seconds:.2f}x as fast as the naive loss"
        one = by_key.get((name, dtype, rows, tokens, 1, "lean"))
        if one and heads > 1:
            beyond, of_one = (v.peak_bytes - c.gradients_bytes for c, v in ((case, value), one))
            yield f"{label} {beyond / of_one:.2f}x the memory of one head, beyond the gradients"
