"""The table `[training]`."""

import dataclasses
from typing import ClassVar

from keras_mtp.recipe.table import Table, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRecipe(Table):
    """How what tuning.method says (and unfrozen heads) is trained, after the heads' warm-up."""

    _path: ClassVar[str] = "training."
    steps: int = field(120, "Optimizer steps.", minimum=1)
    batch_size: int = field(8, "Examples per optimizer step.", minimum=1)
    accumulation: int = field(
        1, "Micro-batches per optimizer step: 2 halves the memory, the result is the same.", minimum=1
    )
    learning_rate: float = field(
        8e-3,
        "Peak learning rate of what tuning.method trains; the heads have their own. On "
        "SmolLM2-135M and GSM8K, of a few tried: prefix 4e-3, prefix_kv 2e-2, lora 4e-3 (of rank 8), full 4e-5.",
        minimum=0,
    )
    learning_rate_warmup: float = field(
        0.1,
        "Share of the steps in which the rate rises to its peak; a cosine then brings it to 0.",
        minimum=0,
        maximum=1,
    )
    weight_decay: float = field(0.0, "AdamW's weight decay.", minimum=0)
    clip_norm: float = field(
        1.0, "Largest gradient norm, of prefix and heads each; 0 clips nothing.", minimum=0
    )
    epsilon: float = field(1e-7, "AdamW's epsilon, as Keras defines it.", above=0)
    keep: str = field(
        "last",
        "Which weights are the result: last, or best: those with the lowest loss of head_1 on the held-out examples, among "
        "all evaluations, the one before training included.",
        choices=("last", "best"),
    )
    patience: int = field(
        0,
        "Stop after so many evaluations in a row without a new lowest held-out loss of head_1; 0 never stops early.",
        minimum=0,
    )
    probe_every: int = field(
        0,
        "Measure every so many steps, and in the first, what each head's loss asks of the trained weights outside the heads: "
        "its gradient's norm (of the loss without its weight) and its cosine to head_1's. Training goes on as without; a "
        "measurement takes about as long as a step. 0: never.",
        minimum=0,
    )
    snapshot_every: int = field(
        50,
        "Steps between two snapshots, from which a run that was cut off goes on to the same result; 0: none, and a run that is "
        "cut off is lost.",
        minimum=0,
    )
    snapshots_kept: int = field(
        2, "How many snapshots are kept while the run goes on; they go once it is finished.", minimum=1
    )
    on_divergence: str = field(
        "stop",
        "What a training loss that is no finite number does: stop the run, or let it continue to the end, where the report says so.",
        choices=("stop", "continue"),
    )
    seed: int = field(
        0, "Decides the order of the data and every random start.", minimum=0, maximum=2**32 - 1
    )
    dtype: str = field(
        "float32",
        "What is computed in; prefix and heads are float32 weights all the same.",
        choices=("float32", "mixed_bfloat16"),
    )
    remat: bool = field(
        False,
        "Compute each block's inside again in the backward pass instead of keeping it: less memory, about 40 % more work.",
    )
    memory_check: bool = field(
        True,
        "Refuse to start where the memory that the run is predicted to take is not free; false starts all the same.",
    )
    compile: bool = field(
        True,
        "On torch, fuse each block's elementwise work with torch.compile (needs a C++ compiler, on a GPU Triton); not in "
        "stages too short to win back its minute. JAX and TensorFlow always compile.",
    )
