"""LoRA on a keras-hub backbone: Keras' own `enable_lora`, on the projections that are asked for.

    y = x W  +  alpha / rank * (x A) B        W frozen; A random, B zero: at first nothing changes

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685, section 4.1). Keras' shape of it
for the query, key and value kernels, (D, heads, head size), is richer than the paper's: every attention head has an A of
its own, (D, rank), and they share one B, (rank, head size). For the other matrices the two are the same.
test_lora.py compares both with PEFT.

D hidden size, r rank.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from keras_mtp.quantised import is_quantised
from keras_mtp.tuning import PROJECTIONS


class LoRA(keras.layers.Layer):
    """The low-rank matrices of a backbone; making one enables them.

    It is never called, since they take effect inside the backbone's own layers. A and B are float32 variables whatever
    the compute dtype. `MTPCausalLM` makes one from its own config.

    A `.keras` file holds kernels with LoRA merged into them, as Keras saves them, and beside them A and B: when it is
    loaded, these are taken out of the kernels again, so that training can go on. Quantised kernels are saved as they are.

    Args:
        backbone: the keras-hub Llama backbone.
        rank: int. r. alpha: float. Scales the change, by alpha / rank.
        targets: which projections, of `PROJECTIONS`.
        seed: int. Seeds A: even within 1 / sqrt(inputs), as in PEFT; drawn by NumPy, so it is the same on every backend.

    Raises:
        ValueError: a rank below 1, an alpha that is not above 0, an unknown projection or none.

    Reference: arXiv 2106.09685, section 4.1.
    """

    def __init__(
        self,
        backbone: keras.Model,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check(rank, alpha, targets)
        self.backbone, self.rank, self.alpha, self.targets, self.seed = (
            backbone,
            rank,
            alpha,
            list(targets),
            seed,
        )
        rng = np.random.default_rng([seed, *b"lora"])
        for _, name, dense in self.adapted():
            dense.enable_lora(rank, lora_alpha=alpha, a_initializer="zeros")
            if is_quantised(dense):
                _keep_when_saved(dense)
            reach = 1 / math.sqrt(math.prod(dense.lora_kernel_a.shape[: inputs_of(name)]))
            dense.lora_kernel_a.assign(rng.uniform(-reach, reach, dense.lora_kernel_a.shape))
        self.built = True
        self.learn(True)

    def adapted(self) -> Iterator[tuple[int, str, keras.layers.Layer]]:
        """Every adapted layer: `(block's place, projection, layer)`."""
        for place, block in enumerate(self.backbone.transformer_layers):
            for name in self.targets:
                yield place, name, projection(block, name)

    def named_variables(self) -> dict[str, keras.Variable]:
        """A and B by names of our own: `{"0/query/a": ..., "0/query/b": ...}`."""
        return {
            f"{place}/{name}/{which}": variable
            for place, name, dense in self.adapted()
            for which, variable in (("a", dense.lora_kernel_a), ("b", dense.lora_kernel_b))
        }

    def learn(self, yes: bool) -> None:
        """Makes A and B trainable, and nothing else of the backbone; or nothing at all."""
        self.backbone.trainable = yes  # of everything in it
        ours = {id(variable) for variable in self.named_variables().values()}
        for variable in self.backbone.weights:
            variable.trainable = yes and id(variable) in ours

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """Inside the block the backbone is as it was without LoRA."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    def merge(self) -> None:
        """Puts the change into the frozen matrices for good. A and B stay, and do nothing from then on."""
        for _, _, dense in self.adapted():
            dense._kernel.assign(dense.kernel)
        self._switch(False)

    def _switch(self, on: bool) -> None:
        for _, _, dense in self.adapted():
            dense.lora_enabled = on

    def save_own_variables(self, store):
        for place, variable in enumerate(self.named_variables().values()):
            store[str(place)] = ops.convert_to_numpy(variable.value)

    def load_own_variables(self, store):
        # Keras has loaded the merged kernels by now: a model's own layers come before its other attributes.
        for place, variable in enumerate(self.named_variables().values()):
            variable.assign(store[str(place)])
        for _, _, dense in self.adapted():
            if is_quantised(dense):  # saved as it is
                continue
            change = self.alpha / self.rank * ops.matmul(dense.lora_kernel_a, dense.lora_kernel_b)
            dense._kernel.assign(ops.cast(dense._kernel, "float32") - change)


def _keep_when_saved(dense) -> None:
    """Keras would save a quantised kernel with LoRA merged into it and rounded again, from which it cannot be taken out."""
    zero = getattr(dense, "kernel_zero", None)
    dense._get_kernel_with_merged_lora = lambda: (dense._kernel, dense.kernel_scale, zero)


def projection(block, name: str) -> keras.layers.Layer:
    """A block's matrix by its name: its keras-hub layer, an `EinsumDense` or a `Dense`."""
    attention = block._self_attention_layer
    return {
        "query": attention._query_dense,
        "key": attention._key_dense,
        "value": attention._value_dense,
        "output": attention._output_dense,
        "gate": block._feedforward_gate_dense,
        "up": block._feedforward_intermediate_dense,
        "down": block._feedforward_output_dense,
    }[name]


def inputs_of(name: str) -> int:
    """How many of the first axes of a projection's kernel are summed over."""
    return 2 if name == "output" else 1


def _check(rank: int, alpha: float, targets: Sequence[str]) -> None:
    if rank < 1:
        raise ValueError(f"`lora_rank` must be at least 1. Received: lora_rank={rank}")
    if not alpha > 0:
        raise ValueError(f"`lora_alpha` must be above 0. Received: lora_alpha={alpha}")
    if not targets or not set(targets) <= set(PROJECTIONS):
        raise ValueError(
            f"`lora_targets` must be some of {PROJECTIONS}. Received: lora_targets={list(targets)}"
        )
