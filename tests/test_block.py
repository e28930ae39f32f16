"""`run_block` against keras-hub's own call, whose private names it relies on."""

import numpy as np
import pytest
from keras import ops

from keras_mtp.layers.block import BlockWeights, Rotation, grouped_attention, run_block
from tests import tiny


def _causal(count: int) -> np.ndarray:
    return np.tril(np.ones((1, count, count), bool))


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_max_wavelength": 500},
        {
            "rope_frequency_adjustment_factor": 8.0,
            "rope_low_freq_factor": 1.0,
            "rope_high_freq_factor": 4.0,
            "rope_pretraining_sequence_length": 64,
        },
    ],
)
def test_a_block_computes_what_keras_hub_computes(rope):
    block = tiny.backbone(layer_norm_epsilon=1e-3, **rope).transformer_layers[1]
    x = np.random.default_rng(0).normal(size=(2, 9, 32)).astype("float32")

    def attend(query, key, value):
        visible = ops.convert_to_tensor(_causal(9))
        return grouped_attention(query, key, value, visible, block._self_attention_layer._inv_norm_factor)

    ours = run_block(
        BlockWeights.of(block), ops.convert_to_tensor(x), Rotation(block, np.arange(9)[None]), attend
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(ours), ops.convert_to_numpy(block(x)), rtol=1e-6, atol=5e-6
    )


def test_lora_on_a_block_is_applied():
    """A layer with something attached to it is called, not read: here LoRA on the query and value projections."""
    block = tiny.backbone().transformer_layers[0]
    attention = block._self_attention_layer
    rng = np.random.default_rng(1)
    for dense in (attention._query_dense, attention._value_dense):
        dense.enable_lora(2)
        dense.lora_kernel_b.assign(rng.normal(size=dense.lora_kernel_b.shape))
    x = rng.normal(size=(1, 5, 32)).astype("float32")

    def attend(query, key, value):
        return grouped_attention(
            query, key, value, ops.convert_to_tensor(_causal(5)), attention._inv_norm_factor
        )

    ours = run_block(
        BlockWeights.of(block), ops.convert_to_tensor(x), Rotation(block, np.arange(5)[None]), attend
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(ours), ops.convert_to_numpy(block(x)), rtol=1e-4, atol=1e-4
    )


def test_grouped_attention_against_numpy():
    rng = np.random.default_rng(2)
    query, key, value = (rng.normal(size=(2, n, h, 4)).astype("float32") for n, h in ((3, 6), (5, 2), (5, 2)))
    visible = np.arange(5)[None, None] <= np.arange(2, 5)[None, :, None]
    expected = np.zeros((2, 3, 6, 4))
    for b, r, h in np.ndindex(2, 3, 6):
        scores = key[b, :, h // 3] @ query[b, r, h] * 0.5
        weights = np.where(visible[0, r], np.exp(scores - scores.max()), 0)
        expected[b, r, h] = weights / weights.sum() @ value[b, :, h // 3]
    tensors = [ops.convert_to_tensor(t) for t in (query, key, value, visible)]
    np.testing.assert_allclose(ops.convert_to_numpy(grouped_attention(*tensors, 0.5)), expected, atol=1e-6)
