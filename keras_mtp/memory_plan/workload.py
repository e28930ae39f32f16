"""What of a run decides its memory, and how many numbers its model has."""

from dataclasses import dataclass

from keras_mtp.at_once import INT4_BLOCK
from keras_mtp.flops import Positions, Sizes
from keras_mtp.tuning import PREFIXES, PROJECTIONS, methods

FLOAT32 = 4  # bytes; trained weights, their gradients and optimizer, norms and softmax always are


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
        of_tables = tables * sizes.vocabulary_size * (sizes.hidden_dim + FLOAT32)
        inputs, outputs = (sum(shape[axis] for shape in sizes.projections.values()) for axis in (0, 1))
        of_block: float = sizes.block_weights + FLOAT32 * outputs  # a scale for every output
        if (
            self.quantize == "int4"
        ):  # both for every output and so many inputs; for every input the number of its group
            of_block = sizes.block_weights * (1 / 2 + (FLOAT32 + 1) / INT4_BLOCK) + FLOAT32 * inputs
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


def _lora_weights(sizes: Sizes, name: str, rank: int) -> int:
    """Numbers in A and B of a projection: attention heads have an A each and share one B."""
    into_a, from_b = sizes.lora_weights(name, rank)
    return into_a + (rank * sizes.head_dim if name in ("query", "key", "value") else from_b)


def _block_weights(sizes: Sizes) -> int:
    return sizes.block_weights + 2 * sizes.hidden_dim
