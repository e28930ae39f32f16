"""Prefix tuning: at its start a model with a text's keys and values is the backbone with that text in front."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.prefix_key_values import PrefixKeyValues
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny

TEXT = [3, 1, 2, 8]
SHARED = 4


def _model(heads=(), *, start=TEXT, kind="key_values", **kwargs) -> MTPCausalLM:
    return MTPCausalLM(
        tiny.backbone(rope_max_wavelength=500),
        prefix_length=len(TEXT),
        prefix_kind=kind,
        prefix_start=start,
        heads=heads,
        **kwargs,
    )


def _heads():
    return [TransformerHead(start="random"), SequentialHead(start="random"), LinearHead()]


def _ids() -> np.ndarray:
    ids = tiny.token_ids(3, 11)
    ids[:, :SHARED] = ids[0, :SHARED]
    return ids


def test_at_its_start_it_is_the_backbone_behind_the_text():
    model, ids = _model(), _ids()
    whole = np.concatenate([np.tile(TEXT, (3, 1)), ids], axis=1).astype("int32")
    backbone = model.backbone
    states = backbone({"token_ids": whole, "padding_mask": np.ones_like(whole)})
    expected = ops.convert_to_numpy(backbone.token_embedding(states, reverse=True))[:, len(TEXT) :]
    np.testing.assert_allclose(tiny.forward(model)(ids)["head_1"], expected, atol=2e-5)


@pytest.mark.parametrize("start", ["vocabulary", "random", [5, 6]])
def test_whatever_it_starts_from_it_is_the_model_with_that_prefix_of_embeddings(start):
    """With fresh heads: copies of the last block, they would make its keys and values."""
    ids = _ids()
    ours, embeddings = (
        tiny.forward(_model([TransformerHead(), SequentialHead(), LinearHead()], start=start, kind=kind))(ids)
        for kind in ("key_values", "embeddings")
    )
    for name, logits in embeddings.items():
        np.testing.assert_allclose(ours[name], logits, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("shared", [0, SHARED])
def test_training_computes_what_the_model_says(shared):
    model, ids = _changed(_model(_heads())), _ids()
    logits = tiny.forward(model)(ids)
    states = tiny.forward(model.training_view(shared_tokens=shared))(ids)
    assert list(states) == list(logits) == ["head_1", "head_2", "head_3", "head_4"]
    for name, state in states.items():
        assert state.shape == (3, 11, 32)
        ours = ops.convert_to_numpy(model.backbone.token_embedding(state, reverse=True))
        np.testing.assert_allclose(ours, logits[name], atol=3e-5, err_msg=name)


def _changed(model: MTPCausalLM) -> MTPCausalLM:
    """Keys and values that no text has, and no head's projections would make."""
    rng = np.random.default_rng(4)
    for variable in model.prefix_key_values.key_values:
        variable.assign(tiny.arrays([variable])[0] + rng.normal(0, 0.3, variable.shape))
    return model


def test_a_head_with_attention_looks_at_the_last_blocks_keys_and_values():
    model, ids = _model(_heads()), _ids()
    before = tiny.forward(model)(ids)
    last = model.prefix_key_values.key_values[-1]
    last.assign(2 * tiny.arrays([last])[0])
    after = tiny.forward(model)(ids)
    changed = {name: float(np.abs(after[name] - before[name]).max()) for name in before}
    assert all(value > 0.01 for value in changed.values())
    # What the trunk gives the heads is the same, so only through their own attention could these two change.
    assert model.heads[0].reads == model.heads[1].reads == "before_last_block"


@pytest.mark.parametrize(
    "option",
    [None, "only_heads", "detach"],
)
@pytest.mark.parametrize("change", [{"shared_tokens": SHARED}, {"remat": True}], ids=["shared", "remat"])
def test_neither_sharing_nor_remat_changes_a_gradient(change, option):
    options = {option: True} if option else {}
    plain = tiny.gradients(_changed(_model(_heads())), _ids(), **options)
    changed = tiny.gradients(_changed(_model(_heads())), _ids(), **options, **change)
    assert plain.keys() == changed.keys()
    prefix = [np.abs(value).max() for name, value in plain.items() if "block_" in name]
    assert len(prefix) == 3 and all((value == 0) == (option == "only_heads") for value in prefix)
    for name, value in plain.items():
        np.testing.assert_allclose(value, changed[name], atol=1e-5, err_msg=name)


def test_a_detached_head_teaches_no_key_and_no_value():
    """Their gradient is the one that they have without heads."""
    alone = tiny.gradients(_changed(_model()), _ids())
    detached = tiny.gradients(_changed(_model(_heads())), _ids(), detach=True)
    attached = tiny.gradients(_changed(_model(_heads())), _ids())
    by_block = [{n.partition(" ")[2]: g for n, g in found.items()} for found in (alone, detached, attached)]
    for name, gradient in by_block[0].items():
        np.testing.assert_allclose(by_block[1][name], gradient, atol=1e-7, err_msg=name)
        assert np.abs(by_block[2][name] - gradient).max() > 1e-3, name


def test_float32_variables_whatever_the_compute_dtype():
    model = MTPCausalLM(
        tiny.backbone(dtype="bfloat16"), prefix_length=4, prefix_kind="key_values", heads=[TransformerHead()]
    )
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    assert (
        model.prefix_key_values.of_block(0)[0].dtype == model.backbone.token_embedding(np.ones((1, 1))).dtype
    )
    states = model.training_view()(_ids())
    assert {keras.backend.standardize_dtype(state.dtype) for state in states.values()} == {"bfloat16"}


def test_sizes_are_the_backbones():
    prefix = PrefixKeyValues.of(tiny.backbone(), 6)
    assert [tuple(v.shape) for v in prefix.key_values] == [(2, 6, 2, 8)] * 3


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="the limit is TensorFlow's")
def test_upstream_cache_still_stops_gradients_on_tensorflow():
    """Once `ops.slice_update` has a gradient, `PrefixedBlock` can call keras-hub's block with a cache."""
    import tensorflow as tf

    buffer = tf.Variable(np.zeros((4, 2), "float32"))
    with tf.GradientTape() as tape:
        total = ops.sum(ops.slice_update(buffer, [1, 0], np.ones((2, 2), "float32")))
    with pytest.raises(LookupError, match="XlaDynamicUpdateSlice"):
        tape.gradient(total, buffer)
