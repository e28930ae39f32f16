"""LoRA around a backbone; `test_peft_methods.py` holds its numbers against PEFT."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.lora import projection
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.models.tuned_weights import train_only, tuned_variables
from keras_mtp.tuning import PROJECTIONS
from tests import tiny

SHARED = 4


def _model(heads=(), *, targets=PROJECTIONS, dtype="float32", **kwargs) -> MTPCausalLM:
    backbone = tiny.backbone(num_layers=2, dtype=dtype)
    return MTPCausalLM(backbone, heads=heads, lora_rank=2, lora_alpha=6.0, lora_targets=targets, **kwargs)


def _heads():
    return [TransformerHead(start="random"), SequentialHead(start="random"), LinearHead()]


def _learnt(model: MTPCausalLM) -> MTPCausalLM:
    """As after training: with B that is not zero."""
    rng = np.random.default_rng(5)
    for name, variable in model.lora.named_variables().items():
        if name.endswith("/b"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
    return model


def _ids() -> np.ndarray:
    ids = tiny.token_ids(3, 11)
    ids[:, :SHARED] = ids[0, :SHARED]
    return ids


def test_at_first_nothing_changes():
    plain = tiny.forward(MTPCausalLM(tiny.backbone(num_layers=2), heads=[TransformerHead()]))(_ids())
    for name, logits in tiny.forward(_model([TransformerHead()]))(_ids()).items():
        np.testing.assert_array_equal(logits, plain[name])


def test_a_and_b_are_all_that_is_trained_of_the_backbone():
    model = _model([LinearHead()], targets=("query", "down"))
    names = list(tuned_variables(model))
    assert (
        names[:4] == ["lora/0/query/a", "lora/0/query/b", "lora/0/down/a", "lora/0/down/b"]
        and len(names) == 8
    )
    ours = {id(v) for v in tuned_variables(model).values()}
    assert {id(v) for v in model.backbone.trainable_variables} == ours
    train_only(model, tuned=False, heads=model.heads)
    assert {id(v) for v in model.trainable_variables} == {id(v) for v in model.heads[0].variables}
    train_only(model, tuned=True, heads=[])
    assert {id(v) for v in model.trainable_variables} == ours


def test_the_start_is_numpys_and_follows_the_seed():
    a = [tiny.arrays(_model(seed=seed).lora.named_variables().values()) for seed in (0, 0, 1)]
    for first, again in zip(a[0], a[1], strict=True):
        np.testing.assert_array_equal(first, again)
    assert not np.array_equal(a[0][0], a[2][0])
    reach = 1 / np.sqrt(32)
    assert 0.8 * reach < np.abs(a[0][0]).max() <= reach and not a[0][1].any()


def test_a_head_is_a_copy_of_the_plain_last_block_and_not_adapted():
    model = _model([TransformerHead()])
    decoder, last = model.heads[0].decoder, model.backbone.transformer_layers[-1]
    for name in PROJECTIONS:
        assert projection(last, name).lora_enabled and not projection(decoder, name).lora_enabled
        for ours, theirs in zip(
            tiny.arrays(projection(decoder, name).variables),
            tiny.arrays([projection(last, name)._kernel]),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_training_computes_what_the_model_says(dtype):
    model, ids = _learnt(_model(_heads(), dtype=dtype)), _ids()
    logits = tiny.forward(model)(ids)
    states = tiny.forward(model.training_view(shared_tokens=SHARED))(ids)
    for name, state in states.items():
        ours = ops.convert_to_numpy(ops.cast(model.backbone.token_embedding(state, reverse=True), "float32"))
        whole = np.asarray(logits[name], "float32")
        atol = 5e-5 if dtype == "float32" else 0.05 * np.abs(whole).max()
        np.testing.assert_allclose(ours, whole, atol=atol, err_msg=name)


only_torch_fuses = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="elsewhere it is the same view"
)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"shared_tokens": SHARED}, id="shared"),
        pytest.param({"remat": True}, id="remat"),
        pytest.param({"fused": True}, id="fused", marks=only_torch_fuses),
    ],
)
def test_neither_sharing_nor_remat_nor_fusing_changes_a_gradient(change):
    plain, changed = (tiny.gradients(_learnt(_model(_heads())), _ids(), **view) for view in ({}, change))
    assert plain.keys() == changed.keys() and sum("lora_kernel" in name for name in plain) == 28
    for name, value in plain.items():
        assert np.abs(value).max() > 0
        np.testing.assert_allclose(value, changed[name], atol=2e-5, err_msg=name)


def test_a_keras_file_holds_a_and_b_beside_merged_kernels(tmp_path):
    model = _learnt(_model(_heads()))
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    ids = _ids()
    for name, logits in tiny.forward(model)(ids).items():
        np.testing.assert_allclose(tiny.forward(again)(ids)[name], logits, atol=1e-5, err_msg=name)
    for (name, ours), theirs in zip(
        tuned_variables(model).items(), tiny.arrays(tuned_variables(again).values()), strict=True
    ):
        np.testing.assert_array_equal(tiny.arrays([ours])[0], theirs, err_msg=name)
    assert {v.path for v in again.backbone.trainable_variables} == {
        v.path for v in model.backbone.trainable_variables
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_rank": -1}, "`lora_rank` must be at least 0"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, "`lora_alpha` must be above 0"),
        ({"lora_rank": 2, "lora_targets": ["q_proj"]}, "`lora_targets` must be some of"),
        ({"lora_rank": 2, "lora_targets": []}, "`lora_targets` must be some of"),
        ({"lora_rank": 2, "freeze_backbone": False}, "`freeze_backbone` must be True with `lora_rank`"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        MTPCausalLM(tiny.backbone(num_layers=2), **arguments)
