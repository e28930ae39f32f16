"""How many floating-point operations a training step takes, from sizes alone.

A matrix product of (N, a) and (a, b) is 2·N·a·b operations. Forward it is made once; backward once more for the gradient
of its input, and once more for that of its weight, where that weight is trained:

    per position and weight of a block      forward   input's gradient   weight's gradient
    full       the trunk is trained            2              2                  2           = 6
    prefix     the trunk is frozen             2              2                  -           = 4
    heads      the trunk is only passed        2              -                  -           = 2

`prefix_kv` and `lora` cost what `prefix` does, and less in the first block, where no gradient need go further back than
to what is trained there. LoRA's two small matrices are products of their own, both trained; trained keys and values cost
no positions, only attention. (Rematerialised, XLA keeps of the first block what depends on nothing trained.)

Attention scores and their weighted sum have no weights: 4 per query, key and dimension forward, 8 more where a gradient
passes. Rematerialised, a block is made once more on the way back, up to its last product, whose result nobody needs
there. The unembedding is made for the labelled rows of every head only. Norms, softmax, rotary embedding and the
optimizer are left out: on a real Llama they are about one per cent. `tests/test_flops.py` holds these formulas against
what XLA and torch count.

Reference: Kaplan et al. 2020, arXiv 2001.08361, section 2.1 and table 1.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Self

from keras_mtp.tuning import methods

KINDS = ("transformer", "sequential", "linear")
# A block's matrices in the order in which they are multiplied with; attention stands between the first and the second.
_STAGES = (("query", "key", "value"), ("output",), ("gate", "up"), ("down",))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What of a Llama decides its cost.

    Args:
        hidden_dim: D. query_dim: query heads times their size. key_value_dim: key-value heads times their size.
        head_dim: the size of a head.
        intermediate_dim: width of the feed-forward. num_layers: blocks. vocabulary_size: V.
    """

    hidden_dim: int
    query_dim: int
    key_value_dim: int
    head_dim: int
    intermediate_dim: int
    num_layers: int
    vocabulary_size: int

    @classmethod
    def of(cls, backbone: Any) -> Self:
        """Reads them off a keras-hub Llama backbone."""
        head_dim = backbone.hidden_dim // backbone.num_query_heads
        return cls(
            hidden_dim=backbone.hidden_dim,
            query_dim=backbone.num_query_heads * head_dim,
            key_value_dim=backbone.num_key_value_heads * head_dim,
            head_dim=head_dim,
            intermediate_dim=backbone.intermediate_dim,
            num_layers=backbone.num_layers,
            vocabulary_size=backbone.vocabulary_size,
        )

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a block's matrices."""
        hidden, inner = self.hidden_dim, self.intermediate_dim
        return {
            "query": (hidden, self.query_dim),
            "key": (hidden, self.key_value_dim),
            "value": (hidden, self.key_value_dim),
            "output": (self.query_dim, hidden),
            "gate": (hidden, inner),
            "up": (hidden, inner),
            "down": (inner, hidden),
        }

    @property
    def block_weights(self) -> int:
        """Weights of one block's matrices; the norms' scales are no matrices."""
        return sum(inputs * outputs for inputs, outputs in self.projections.values())

    def lora_weights(self, name: str, rank: int) -> tuple[int, int]:
        """Multiplications per position with A and with B of a projection: every attention head has its own A."""
        inputs, outputs = self.projections[name]
        heads = outputs // self.head_dim if name in _STAGES[0] else 1
        return inputs * heads * rank, rank * outputs


@dataclass(frozen=True, kw_only=True)
class Positions:
    """The positions a forward pass computes.

    Args:
        rows: B, the sequences.
        own: positions computed for every sequence, padding included, and the prefix too where each computes its own.
        shared: positions in front of them that are computed once for all sequences.
        kept: positions in front of these that are not computed: their keys and values are trained.
    """

    rows: int
    own: int
    shared: int = 0
    kept: int = 0

    @property
    def count(self) -> int:
        """How many they are, N."""
        return self.shared + self.rows * self.own

    @property
    def pairs(self) -> int:
        """Query-key pairs of attention; those that the causal mask hides are computed and thrown away."""
        in_front = self.kept + self.shared
        return self.shared * in_front + self.rows * self.own * (in_front + self.own)


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Operations of one step by part; `total` adds them up."""

    trunk: float
    heads: float
    unembedding: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.trunk + self.heads + self.unembedding


def step_flops(
    sizes: Sizes,
    positions: Positions,
    *,
    labelled_rows: int,
    trained: str = "prefix",
    lora_rank: int = 0,
    lora_targets: Collection[str] = (),
    heads: int = 0,
    kind: str = "transformer",
    attach: str = "default",
    heads_trained: bool = True,
    detached: bool = False,
    remat: bool = False,
) -> StepFlops:
    """Operations of one training step: forward and backward of the model and its loss.

    Args:
        sizes: the Llama's. positions: what a batch makes it compute.
        labelled_rows: positions that the unembedding is made for, summed over all heads, `head_1` included.
        trained: a recipe's `tuning.method`: "prefix", "prefix_kv", "lora", "full" or "heads" (also the warm-up of the heads:
            the trunk gets no gradient and `head_1` makes no logits), or "prefix+lora", "prefix_kv+lora".
        lora_rank, lora_targets: of LoRA: its rank, and which projections it changes.
        heads: number of heads beyond `head_1`.
        kind: "transformer", "sequential" or "linear". attach: what they read, as `heads.attach` in a recipe.
        heads_trained: whether their weights are trained. detached: whether their gradient stops before the trunk.
        remat: whether blocks are computed again in the backward pass.

    Returns:
        The operations by part.

    Raises:
        UserError: `trained` is no method. ValueError: `kind` is no known name.

    Example:

    ```python
    sizes = Sizes.of(backbone)
    step_flops(sizes, Positions(rows=8, own=256), labelled_rows=8 * 100).total / seconds  # FLOP/s
    ```
    """
    names = methods(trained)
    targets = tuple(lora_targets) if "lora" in names else ()
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}. Received: kind={kind!r}")
    detached = detached or trained == "heads"
    trunk_passes = {"full": 3, "heads": 1}.get(trained, 2)
    beside_last = attach == "before_last_block" or (attach == "default" and kind != "linear")
    # While heads that run beside the last block are trained alone, nobody needs that block.
    layers = sizes.num_layers - (trained == "heads" and beside_last)
    # The unembedding is trained by head_1 at most, and only where the trunk is.
    head_1_rows = labelled_rows / (1 + heads) if trained == "full" else 0
    block = _block(sizes, positions, trunk_passes, backward=trained != "heads", remat=remat)
    block += sum(_lora(sizes, positions, name, lora_rank, remat) for name in targets)
    trunk = layers * block
    if not {"full", "prefix", "heads"} & {*names}:
        trunk -= _spared_in_first_block(sizes, positions, "prefix_kv" in names, lora_rank, targets)
    return StepFlops(
        trunk=trunk,
        heads=heads * _head(sizes, positions, kind, heads_trained, detached, remat),
        unembedding=(4 * labelled_rows + 2 * head_1_rows) * sizes.hidden_dim * sizes.vocabulary_size,
    )


def _block(sizes: Sizes, positions: Positions, passes: int, *, backward: bool, remat: bool) -> float:
    again = int(backward and remat)
    without_last = sizes.block_weights - sizes.hidden_dim * sizes.intermediate_dim
    weights = passes * sizes.block_weights + again * without_last
    attention = (12 if backward else 4) + 4 * again
    return 2 * positions.count * weights + attention * positions.pairs * sizes.query_dim


def _lora(sizes: Sizes, positions: Positions, name: str, rank: int, remat: bool) -> float:
    return 2 * positions.count * (3 + remat) * sum(sizes.lora_weights(name, rank))


def _spared_in_first_block(
    sizes: Sizes, positions: Positions, key_values: bool, rank: int, targets: Collection[str]
) -> float:
    """The gradients of inputs in front of which nothing is trained."""
    spared, trained_before = 0.0, False
    for stage in _STAGES:
        if not trained_before:
            weights = sum(inputs * outputs for inputs, outputs in (sizes.projections[name] for name in stage))
            weights += sum(sizes.lora_weights(name, rank)[0] for name in stage if name in targets)
            spared += 2 * positions.count * weights
        trained_before = trained_before or any(name in targets for name in stage)
        if stage is _STAGES[0]:
            trained_before = trained_before or key_values
            spared += 0 if trained_before else 8 * positions.pairs * sizes.query_dim
    return spared


def _head(sizes: Sizes, positions: Positions, kind: str, trained: bool, detached: bool, remat: bool) -> float:
    passes = 3 if trained else 2
    square = 2 * (passes - detached) * positions.count * sizes.hidden_dim**2
    if kind == "linear":
        return square
    # Detached or not: the scale of the norm it begins with is trained, and needs the gradient of all that follows.
    block = _block(sizes, positions, passes, backward=True, remat=remat)
    # A sequential head's projection is two squares, of the state and of the embedding.
    return block + 2 * square if kind == "sequential" else block
