"""What a run holds in memory in every phase, part by part, counted by shapes."""

from collections.abc import Collection

from keras_mtp.at_once import ADMITTED, CHUNK, PREFILL
from keras_mtp.flops import Positions
from keras_mtp.memory_plan.workload import FLOAT32, Workload
from keras_mtp.tuning import PROJECTIONS

PARTS = (
    *("weights", "quantised", "trained", "merged", "optimizer", "gradients", "best"),
    *("activations", "products", "deltas", "scores", "kernel", "block", "logits", "states"),
    *("reading", "cache", "left", "saved", "compiled"),
)
_ANSWERING = 4  # programs that make answers: of a prefix, of prompts, of a first token, of all others
_PROGRAM = 2**20  # bytes of a compiled block; what is really kept, a factor says


def counted(workload: Workload) -> dict[str, dict[str, float]]:
    """Bytes by part for every phase, as the shapes have it: what the factors are multiplied with."""
    w = workload
    kept: dict[str, float] = {
        # Apart: a backend may keep floating-point weights in another form as well, see `factors`, and these never.
        ("weights" if w.quantize == "none" else "quantised"): w.trunk_bytes / w.model_devices,
        "trained": FLOAT32 * (w.head_weights + w.added_weights),
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
    """The cache, and what a pass over some tokens of a few prompts takes."""
    read = Positions(rows=ADMITTED, own=PREFILL, kept=CHUNK - PREFILL)
    return _passing(w, read) | {
        "cache": _cache(w),
        "logits": FLOAT32 * w.cache_rows * w.sizes.vocabulary_size,
    }


def _stage(w: Workload, *, trunk: bool, tuned: float) -> dict[str, float]:
    """A stage of training beyond the weights; `tuned` weights are trained in it."""
    layers, heads = w.sizes.num_layers * trunk, w.heads * (w.kind != "linear")
    trained_heads = w.heads_alone or not w.heads_frozen or not trunk
    pairs = FLOAT32 * w.training.pairs * w.sizes.query_dim / w.sizes.head_dim
    of_trunk, of_heads = _products(w, w.trained_matrices), _products(w, PROJECTIONS if trained_heads else ())
    if w.remat:
        blocks = (layers + heads) * w.compute_bytes * w.training.count * w.sizes.hidden_dim
    else:
        blocks = (layers + heads) * _block(w)
    table = FLOAT32 * w.sizes.vocabulary_size * w.sizes.hidden_dim
    return _passing(w, w.training) | {
        "activations": blocks + _around_blocks(w),
        "products": 0 if w.remat else layers * of_trunk + heads * of_heads,
        # Of what matrices with LoRA give: gradients that wait until A's and B's are made of them.
        "deltas": layers * w.compute_bytes * w.training.count * w.adapted_outputs,
        "scores": 0 if w.remat else pairs * (layers + heads),
        # The gradients of what a block has kept; rematerialised, also what it makes again.
        "block": (1 + w.remat) * (pairs + _block(w) + of_trunk),
        "optimizer": FLOAT32 * tuned * (2 + w.accumulated),
        "gradients": FLOAT32 * tuned + w.full * trunk * table,
        "best": FLOAT32 * tuned * 3 * w.keep_best * trunk,
        "saved": _copied(w, tuned) * w.snapshots,
        "left": _cache(w),  # by the answers before, among what was freed
    }


def _copied(w: Workload, tuned: float) -> float:
    """What is copied to be saved, of all that was trained and the optimizer's state, and the larger file as it is written."""
    trained = w.head_weights + w.added_weights + w.full * w.trunk_weights
    return FLOAT32 * (trained + 2 * tuned + max(trained, 2 * tuned))


def _passing(w: Workload, positions: Positions) -> dict[str, float]:
    """What comes and goes within a pass over a batch: the largest block, one chunk of logits, the heads' states."""
    c, sizes, count = w.compute_bytes, w.sizes, positions.count
    pairs = FLOAT32 * positions.pairs * sizes.query_dim / sizes.head_dim
    inner = count * (c * 2 + FLOAT32) * sizes.intermediate_dim
    # What is quantised is made floating-point a matrix at a time; none is larger than the unembedding.
    kernel = c * sizes.vocabulary_size * sizes.hidden_dim
    return {
        "kernel": kernel * (w.quantize != "none"),
        "block": max(pairs, inner),
        "logits": FLOAT32 * w.chunk_rows * sizes.vocabulary_size,
        "states": (1 + w.heads) * c * positions.count * sizes.hidden_dim,
    }


def _block(w: Workload) -> int:
    """What a block's backward pass needs of its forward pass."""
    sizes, c = w.sizes, w.compute_bytes
    hidden = 2 * c + 2 * FLOAT32  # what both norms are given, and in float32 what they make of it
    # Query, key and value as attended with, what comes out.
    heads = c * (2 * sizes.query_dim + 2 * sizes.key_value_dim)
    inner = (2 * c + FLOAT32) * sizes.intermediate_dim  # gate before and after its silu, up
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
    """Keys and values of every block, and of the prompts that are read meanwhile; heads take part in no scoring."""
    per_slot = 2 * w.sizes.num_layers * w.sizes.key_value_dim
    rows = w.cache_rows + ADMITTED * bool(w.cache_rows)
    return w.compute_bytes * per_slot * rows * w.cache_slots
