"""A head that is a whole decoder block, running parallel to the backbone's last one, or behind it."""

from collections.abc import Mapping

import keras
import numpy as np
from keras_hub.src.models.llama.llama_decoder import LlamaTransformerDecoder  # not exported

from keras_mtp import distribution
from keras_mtp.layers.mtp_head import MTPHead, random_weights

# What a Llama decoder block is made from. Read off the block's attributes: its `get_config` raises
# (keras_hub/src/models/llama/llama_decoder.py asks for `rope_scaling_factor`, which no longer exists;
# test_transformer_head.py::test_upstream_block_config_still_raises fails once it is right).
BLOCK_ARGUMENTS = (
    "intermediate_dim",
    "num_query_heads",
    "num_key_value_heads",
    "rope_max_wavelength",
    "rope_position_scaling_factor",
    "rope_frequency_adjustment_factor",
    "rope_low_freq_factor",
    "rope_high_freq_factor",
    "rope_pretraining_sequence_length",
    "layer_norm_epsilon",
    "dropout",
)

STARTS = ("last_block", "random", "zero")


class BlockHead(MTPHead):
    """A head that is a Llama decoder block: how it is made and what it starts as.

    See `TransformerHead` for the arguments. A subclass implements `call` and `advance`.
    """

    reads = "before_last_block"

    def __init__(self, start: str = "last_block", seed: int = 0, block: Mapping | None = None, **kwargs):
        super().__init__(**kwargs)
        if start not in STARTS:
            raise ValueError(f"`start` must be one of {STARTS}. Received: start={start!r}")
        self.start = start
        self.seed = seed
        self.block = None if block is None else dict(block)

    def build(self, input_shape):
        if self.block is None:
            raise ValueError(
                f"A `{type(self).__name__}` takes its sizes from a backbone: pass it to `MTPCausalLM(heads=[...])`."
            )
        self.decoder = LlamaTransformerDecoder(
            **self.block, activation="silu", dtype=self.dtype_policy, name="decoder"
        )
        self.decoder.build(input_shape)
        self.built = True

    def adopt(self, backbone):
        last_block = backbone.transformer_layers[-1]
        self.block = {name: getattr(last_block, name) for name in BLOCK_ARGUMENTS}
        self.build((None, None, backbone.hidden_dim))
        if self.start == "random":
            self.decoder.set_weights(random_weights(self.decoder.weights, self.seed))
            return
        whole = distribution.active().whole  # of a trunk whose weights several devices share, too
        self.decoder.set_weights([whole(variable.value) for variable in last_block.weights])
        if self.start == "zero":
            # What a block adds comes from these two products: the rest of the copy is there to be learnt from.
            for dense in (
                self.decoder._self_attention_layer._output_dense,
                self.decoder._feedforward_output_dense,
            ):
                dense.kernel.assign(np.zeros(dense.kernel.shape, "float32"))

    def get_config(self):
        return {**super().get_config(), "start": self.start, "seed": self.seed, "block": self.block}


@keras.saving.register_keras_serializable("keras_mtp")
class TransformerHead(BlockHead):
    """A Llama decoder block, fed with the state before the backbone's last block unless `attach` says otherwise.

    Args:
        start: "last_block" (a copy of the backbone's last block, the default), "random", or "zero": that copy, but adding
            nothing to the state at first, as the heads of Medusa (arXiv 2401.10774, section 2.1.1) begin. After the last
            block the head then says what head_1 says.
        attach: "before_last_block" (the default), "last_block" or "default", see `MTPHead`.
        seed: int. Seeds the random start; drawn by NumPy, so it is the same on every backend.
        block: dict of the block's sizes (`BLOCK_ARGUMENTS`), filled in from the backbone when the head is bound.

    Call arguments:
        hidden_states: float tensor (B, T, D), prefix included: the state that it reads.

    Returns:
        Float tensor (B, T, D).

    Raises:
        ValueError: `start` or `attach` is no known name; or the head is built with neither sizes nor a backbone.

    Example:

    ```python
    model = keras_mtp.MTPCausalLM(backbone, heads=[keras_mtp.TransformerHead()])
    ```

    Reference: arXiv 2404.19737, section 2 (one transformer layer per head, parallel to the trunk's last).
    """

    def call(self, hidden_states):
        return self.decoder(hidden_states)

    def advance(self, hidden_states, apply_block):
        return apply_block(self.decoder, hidden_states)
