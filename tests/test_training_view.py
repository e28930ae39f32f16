"""The view that training uses against the public model, with and without what all rows share."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp.data.lengths import shared_tokens
from keras_mtp.layers.block import run_block
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.losses import LinearCrossEntropy
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny

SHARED = 4


def _model(prefix_length=3, **kwargs) -> MTPCausalLM:
    model = MTPCausalLM(
        tiny.backbone(num_layers=2),
        prefix_length=prefix_length,
        heads=[TransformerHead(), LinearHead()],
        **kwargs,
    )
    rng = np.random.default_rng(3)
    model.heads[1].dense.kernel.assign(rng.normal(0, 0.1, (32, 32)))
    return model


def _ids(rows=3, tokens=11) -> np.ndarray:
    ids = tiny.token_ids(rows, tokens)
    ids[:, :SHARED] = ids[0, :SHARED]
    return ids


@pytest.mark.parametrize("prefix_length", [0, 3])
@pytest.mark.parametrize("shared", [0, 1, SHARED])
def test_states_lead_to_the_models_own_logits(prefix_length, shared):
    model, ids = _model(prefix_length), _ids()
    states = tiny.forward(model.training_view(shared_tokens=shared))(ids)
    logits = tiny.forward(model)(ids)
    assert list(states) == list(logits) == ["head_1", "head_2", "head_3"]
    for name, state in states.items():
        assert tuple(state.shape) == (3, 11, 32)
        ours = ops.convert_to_numpy(model.backbone.token_embedding(state, reverse=True))
        np.testing.assert_allclose(ours, logits[name], atol=3e-5)


only_torch_fuses = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="elsewhere it is the same view"
)


@pytest.mark.parametrize("option", [None, "only_heads", "detach"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"shared_tokens": SHARED}, id="shared"),
        pytest.param({"remat": True}, id="remat"),
        pytest.param({"fused": True}, id="fused", marks=only_torch_fuses),
        pytest.param({"fused": True, "remat": True}, id="fused and remat", marks=only_torch_fuses),
    ],
)
def test_neither_sharing_nor_remat_nor_fusing_changes_a_gradient(change, option):
    plain, changed = _plain_gradients(option), _gradients(option, **change)
    assert plain.keys() == changed.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(value, changed[name], atol=1e-5, err_msg=name)


def _gradients(option: str | None, **change) -> dict[str, np.ndarray]:
    """With everything in training, trunk included."""
    return tiny.gradients(
        _model(freeze_backbone=False), _ids(), **change, **({option: True} if option else {})
    )


_plain_gradients = functools.cache(_gradients)  # what every change is compared with


@pytest.mark.parametrize("change", [{"shared_tokens": SHARED}, {"remat": True}], ids=["shared", "remat"])
def test_a_step_of_fit_follows_these_gradients(change):
    """As the backend compiles it, where the gradients above may come operation by operation."""
    model, gradients = _model(freeze_backbone=False), _plain_gradients(None)
    before = tiny.arrays(model.trainable_variables)
    tiny.make_one_step(model, _ids(), **change)
    after = tiny.arrays(model.trainable_variables)
    for old, new, (name, gradient) in zip(before, after, gradients.items(), strict=True):
        np.testing.assert_allclose(new, old - tiny.LEARNING_RATE * gradient, atol=2e-6, err_msg=name)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="torch fuses")
def test_a_fused_view_is_the_same_view():
    assert _model().training_view(fused=True).run_block is run_block


def test_only_heads_leaves_the_trunk_alone():
    model = _model(freeze_backbone=False)
    before = tiny.arrays(model.backbone.variables) + tiny.arrays(model.prefix_embedding.variables)
    view = model.training_view(only_heads=True)
    unembedding = model.backbone.token_embedding
    view.compile("sgd", loss={name: LinearCrossEntropy(unembedding) for name in ("head_2", "head_3")})
    view.train_on_batch(_ids(), {"head_2": _ids(), "head_3": _ids()})
    after = tiny.arrays(model.backbone.variables) + tiny.arrays(model.prefix_embedding.variables)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_shared_tokens_are_those_that_all_examples_begin_with():
    examples = tiny.encoded(5)
    assert shared_tokens(examples) == 0
    for example in examples:
        example.ids[:3] = (7, 8, 9)
        example.ids[3] = int(example.id[-1])
    assert shared_tokens(examples) == 3
    assert shared_tokens(examples[:1] * 2) == len(examples[0].ids) - 1, "one token stays a row's own"
