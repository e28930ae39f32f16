"""How much memory a run will take at its peak, from sizes alone: no model is loaded, nothing is computed.

    kept         the program itself, pretrained weights, trained weights: all the time
    phases       loading, evaluation, generation, warm-up, training, saving; each adds its own, and the largest decides

What a phase holds is counted by its shapes. What a backend really keeps of it differs: XLA merges operations and computes
some again, TensorFlow frees late, torch keeps what autograd asks for. So every part is multiplied by a factor, measured
per backend by `tools/measure_memory.py` and kept in `memory_factors.toml`, with how and when. Nothing here is tuned by hand.

B rows, N positions, D hidden size, V vocabulary, K heads, as everywhere.

Reference: Korthikanti et al. 2022, arXiv 2205.05198, section 4 (what a block's backward pass needs).
"""

import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from keras_mtp.at_once import CHUNK, INT4_BLOCK, PREFILL
from keras_mtp.flops import Positions, Sizes
from keras_mtp.tuning import PREFIXES, PROJECTIONS, methods

FACTORS = Path(__file__).with_name("memory_factors.toml")
PARTS = (
    *("weights", "quantised", "trained", "merged", "optimizer", "gradients", "best"),
    *("activations", "products", "deltas", "scores", "kernel", "block", "logits", "states"),
    *("reading", "cache", "left", "saved", "compiled"),
)
_ANSWERING = 4  # programs that make answers: of a prefix, of prompts, of a first token, of all others
_PROGRAM = 2**20  # bytes of a compiled block; what is really kept, a factor says
_FLOAT32 = 4  # bytes; trained weights, their gradients and optimizer, norms and softmax always are


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What of a run decides its memory.

    Args:
        sizes: the Llama's. tied: whether the unembedding is the embedding.
        stored_bytes: per pretrained weight. compute_bytes: per number computed; both 4, or 2 for bfloat16.
        quantize: a recipe's `model.quantize`; what is quantised is stored as that says, whatever `stored_bytes`.
        method: a recipe's `tuning.method`. prefix_length: P, 0 where there is none. lora_rank, lora_targets: of LoRA.
        heads: number of heads beyond `head_1`. kind, attach: a recipe's `heads.kind` and `heads.attach`.
        heads_frozen: whether the heads are not trained together with what the method trains.
        heads_alone: whether the heads are trained and nothing else. warmup: whether they are before that.
        training: the positions of the largest micro-batch. accumulated: whether a step has several.
        held_out: the positions of the largest batch of held-out examples.
        remat: whether blocks are computed again in the backward pass. keep_best: whether the best weights are remembered.
        model_devices: how many share the trunk's weights. snapshots: whether copies of what is trained are written while training goes on.
        chunk_rows: rows whose logits exist at the same time.
        cache_rows, cache_slots: of the key-value cache that answers are made with; 0 for none.
        lengths, judged_lengths: to which batches are padded, of the training and of the held-out examples; each is a program.
    """

    sizes: Sizes
    tied: bool
    training: Positions
    held_out: Positions
    chunk_rows: int
    stored_bytes: int = 4
    compute_bytes: int = 4
    quantize: str = "none"
    method: str = "prefix"
    prefix_length: int = 0
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()
    heads: int = 0
    kind: str = "transformer"
    attach: str = "default"
    heads_frozen: bool = True
    heads_alone: bool = False
    warmup: bool = False
    accumulated: bool = False
    remat: bool = False
    keep_best: bool = False
    snapshots: bool = False
    model_devices: int = 1
    cache_rows: int = 0
    cache_slots: int = 0
    lengths: int = 1
    judged_lengths: int = 1

    @property
    def full(self) -> bool:
        """Whether every pretrained weight is trained."""
        return "full" in methods(self.method)

    @property
    def trained_matrices(self) -> tuple[str, ...]:
        """Of a block, those whose gradient, or that of LoRA on them, needs what they are multiplied with."""
        return PROJECTIONS if self.full else self.lora_targets

    @property
    def trunk_weights(self) -> int:
        """Numbers in the pretrained model."""
        sizes = self.sizes
        tables = sizes.vocabulary_size * sizes.hidden_dim * (1 if self.tied else 2)
        return tables + sizes.num_layers * _block_weights(sizes) + sizes.hidden_dim

    @property
    def trunk_bytes(self) -> float:
        """How these numbers are stored, scales included."""
        sizes = self.sizes
        if self.quantize == "none":
            return self.stored_bytes * self.trunk_weights
        tables = 1 if self.tied else 2  # in int8 always, a scale for every token
        of_tables = tables * sizes.vocabulary_size * (sizes.hidden_dim + _FLOAT32)
        inputs, outputs = (sum(shape[axis] for shape in sizes.projections.values()) for axis in (0, 1))
        of_block: float = sizes.block_weights + _FLOAT32 * outputs  # a scale for every output
        if (
            self.quantize == "int4"
        ):  # both for every output and so many inputs; for every input the number of its group
            of_block = sizes.block_weights * (1 / 2 + (_FLOAT32 + 1) / INT4_BLOCK) + _FLOAT32 * inputs
        norms = sizes.hidden_dim * (1 + 2 * sizes.num_layers)
        return of_tables + sizes.num_layers * of_block + self.stored_bytes * norms

    @property
    def table_bytes(self) -> float:
        """The embedding as it is stored."""
        each = self.stored_bytes if self.quantize == "none" else 1
        return each * self.sizes.vocabulary_size * self.sizes.hidden_dim

    @property
    def head_weights(self) -> int:
        """Numbers in all heads."""
        square = self.sizes.hidden_dim**2
        each = {
            "linear": square,
            "transformer": _block_weights(self.sizes),
            "sequential": _block_weights(self.sizes) + 2 * square,
        }
        return self.heads * each[self.kind]

    @property
    def adapted_weights(self) -> int:
        """Numbers in the matrices that LoRA changes; answers are made with copies that have it merged in."""
        shapes = (self.sizes.projections[name] for name in self.lora_targets)
        return self.sizes.num_layers * sum(inputs * outputs for inputs, outputs in shapes)

    @property
    def adapted_outputs(self) -> int:
        """Numbers that a block's matrices with LoRA make of a position."""
        return sum(self.sizes.projections[name][1] for name in self.lora_targets)

    @property
    def added_weights(self) -> int:
        """Numbers in the prefix and in LoRA."""
        sizes, names = self.sizes, methods(self.method)
        per_place = {"embeddings": sizes.hidden_dim, "key_values": 2 * sizes.num_layers * sizes.key_value_dim}
        prefix = sum(self.prefix_length * per_place[kind] for name, kind in PREFIXES.items() if name in names)
        lora = sum(_lora_weights(sizes, name, self.lora_rank) for name in self.lora_targets)
        return prefix + (sizes.num_layers * lora if "lora" in names else 0)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The memory that a run will take.

    Args:
        workload: what it is predicted from.
        phases: bytes by part, for every phase; what is kept all the time is in each.
    """

    workload: Workload
    phases: Mapping[str, Mapping[str, float]]

    @property
    def phase(self) -> str:
        """The one that takes most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> Mapping[str, float]:
        """Bytes by part in that phase."""
        return self.phases[self.phase]

    @property
    def peak_bytes(self) -> int:
        """Most memory at once, beyond what importing the libraries takes."""
        return math.ceil(sum(self.parts.values()))


def predict(workload: Workload, factors: Mapping[str, float]) -> Prediction:
    """The memory of a run.

    Args:
        factors: what a backend makes of each part, from `factors`; `program` is bytes.
    """
    return Prediction(workload=workload, phases=weighed(counted(workload), factors))


def weighed(
    phases: Mapping[str, Mapping[str, float]], factors: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """What was counted, as a backend will really have it."""
    return {
        name: {"program": factors["program"]} | {part: factors[part] * size for part, size in parts.items()}
        for name, parts in phases.items()
    }


@cache
def _tables() -> dict:
    return tomllib.loads(FACTORS.read_text("utf-8"))


def factors(backend: str, dtype: str, *, accelerator: bool = False) -> Mapping[str, float]:
    """The measured factors of a backend with a compute dtype, "float32" or "mixed_bfloat16".

    All were measured on a CPU. An accelerator gets those of float32 for bfloat16 too: it multiplies in bfloat16, where a CPU
    may first make float32 of what it multiplies.
    """
    return _tables()[backend]["float32" if accelerator else dtype]


def counted(workload: Workload) -> dict[str, dict[str, float]]:
    """Bytes by part for every phase, as the shapes have it: what the factors are multiplied with."""
    w = workload
    kept: dict[str, float] = {
        # Apart: a backend may keep floating-point weights in another form as well, see `factors`, and these never.
        ("weights" if w.quantize == "none" else "quantised"): w.trunk_bytes / w.model_devices,
        "trained": _FLOAT32 * (w.head_weights + w.added_weights),
        "merged": w.compute_bytes * w.adapted_weights,
    }
    phases: dict[str, dict[str, float]] = {
        "loading": {"reading": w.table_bytes},
        "evaluation": _passing(w, w.held_out),
    }
    if w.cache_rows:
        phases["generation"] = _answering(w)
    if w.heads and w.warmup:
        phases["warm-up"] = _stage(w, trunk=False, tuned=w.head_weights)
    tuned = 0 if w.heads_alone else w.added_weights + w.full * w.trunk_weights / w.model_devices
    tuned += w.head_weights if w.heads_alone or not w.heads_frozen else 0
    phases["training"] = _stage(w, trunk=not w.heads_alone, tuned=tuned)
    phases["saving"] = {
        "optimizer": phases["training"]["optimizer"],
        "saved": _copied(w, tuned),
    }
    return {name: kept | {"compiled": _compiled(w, name)} | parts for name, parts in phases.items()}


def _compiled(w: Workload, phase: str) -> float:
    """Programs that have been compiled when a phase ends; none is ever given up."""
    done = w.judged_lengths if phase != "loading" else 0
    done += _ANSWERING * bool(w.cache_rows) if phase not in ("loading", "evaluation") else 0
    done += w.lengths if phase == "warm-up" else 0
    done += w.lengths * (1 + bool(w.heads and w.warmup)) if phase in ("training", "saving") else 0
    return _PROGRAM * (w.sizes.num_layers + w.heads) * done


def _answering(w: Workload) -> dict[str, float]:
    """The cache, and what a pass over some tokens of every prompt takes."""
    read = Positions(rows=w.cache_rows, own=PREFILL, kept=CHUNK - PREFILL)
    return _passing(w, read) | {
        "cache": _cache(w),
        "logits": _FLOAT32 * w.cache_rows * w.sizes.vocabulary_size,
    }


def _stage(w: Workload, *, trunk: bool, tuned: float) -> dict[str, float]:
    """A stage of training beyond the weights; `tuned` weights are trained in it."""
    layers, heads = w.sizes.num_layers * trunk, w.heads * (w.kind != "linear")
    trained_heads = w.heads_alone or not w.heads_frozen or not trunk
    pairs = _FLOAT32 * w.training.pairs * w.sizes.query_dim / w.sizes.head_dim
    of_trunk, of_heads = _products(w, w.trained_matrices), _products(w, PROJECTIONS if trained_heads else ())
    if w.remat:
        blocks = (layers + heads) * w.compute_bytes * w.training.count * w.sizes.hidden_dim
    else:
        blocks = (layers + heads) * _block(w)
    table = _FLOAT32 * w.sizes.vocabulary_size * w.sizes.hidden_dim
    return _passing(w, w.training) | {
        "activations": blocks + _around_blocks(w),
        "products": 0 if w.remat else layers * of_trunk + heads * of_heads,
        # Of what matrices with LoRA give: gradients that wait until A's and B's are made of them.
        "deltas": layers * w.compute_bytes * w.training.count * w.adapted_outputs,
        "scores": 0 if w.remat else pairs * (layers + heads),
        # The gradients of what a block has kept; rematerialised, also what it makes again.
        "block": (1 + w.remat) * (pairs + _block(w) + of_trunk),
        "optimizer": _FLOAT32 * tuned * (2 + w.accumulated),
        "gradients": _FLOAT32 * tuned + w.full * trunk * table,
        "best": _FLOAT32 * tuned * 3 * w.keep_best * trunk,
        "saved": _copied(w, tuned) * w.snapshots,
        "left": _cache(w),  # by the answers before, among what was freed
    }


def _copied(w: Workload, tuned: float) -> float:
    """What is copied to be saved, of all that was trained and the optimizer's state, and the larger file as it is written."""
    trained = w.head_weights + w.added_weights + w.full * w.trunk_weights
    return _FLOAT32 * (trained + 2 * tuned + max(trained, 2 * tuned))


def _passing(w: Workload, positions: Positions) -> dict[str, float]:
    """What comes and goes within a pass over a batch: the largest block, one chunk of logits, the heads' states."""
    c, sizes, count = w.compute_bytes, w.sizes, positions.count
    pairs = _FLOAT32 * positions.pairs * sizes.query_dim / sizes.head_dim
    inner = count * (c * 2 + _FLOAT32) * sizes.intermediate_dim
    # What is quantised is made floating-point a matrix at a time; none is larger than the unembedding.
    kernel = c * sizes.vocabulary_size * sizes.hidden_dim
    return {
        "kernel": kernel * (w.quantize != "none"),
        "block": max(pairs, inner),
        "logits": _FLOAT32 * w.chunk_rows * sizes.vocabulary_size,
        "states": (1 + w.heads) * c * positions.count * sizes.hidden_dim,
    }


def _block(w: Workload) -> int:
    """What a block's backward pass needs of its forward pass."""
    sizes, c = w.sizes, w.compute_bytes
    hidden = 2 * c + 2 * _FLOAT32  # what both norms are given, and in float32 what they make of it
    # Query, key and value as attended with, what comes out.
    heads = c * (2 * sizes.query_dim + 2 * sizes.key_value_dim)
    inner = (2 * c + _FLOAT32) * sizes.intermediate_dim  # gate before and after its silu, up
    return w.training.count * (hidden * sizes.hidden_dim + heads + inner)


def _products(w: Workload, trained: Collection[str]) -> int:
    """What it needs besides where some of its matrices, or LoRA on them, are trained: what they are multiplied with."""
    normed = sum(bool({*trained} & {*names}) for names in (("query", "key", "value"), ("gate", "up")))
    width = normed * w.sizes.hidden_dim + ("down" in trained) * w.sizes.intermediate_dim
    return w.training.count * w.compute_bytes * width


def _around_blocks(w: Workload) -> int:
    """Beside the blocks: linear heads, the two parts of a sequential head's input, final norms."""
    wide = {"linear": 1, "sequential": 2, "transformer": 0}[w.kind] * w.heads + 2 * (1 + w.heads)
    return w.compute_bytes * w.training.count * w.sizes.hidden_dim * wide


def _cache(w: Workload) -> float:
    """Keys and values of every block; heads take part in no scoring."""
    per_slot = 2 * w.sizes.num_layers * w.sizes.key_value_dim
    return w.compute_bytes * per_slot * w.cache_rows * w.cache_slots


def _lora_weights(sizes: Sizes, name: str, rank: int) -> int:
    """Numbers in A and B of a projection: attention heads have an A each and share one B."""
    into_a, from_b = sizes.lora_weights(name, rank)
    return into_a + (rank * sizes.head_dim if name in ("query", "key", "value") else from_b)


def _block_weights(sizes: Sizes) -> int:
    return sizes.block_weights + 2 * sizes.hidden_dim
