"""The view that training uses against the public model, with and without what all rows share."""

import functools

import numpy as np
import pytest
from keras import ops

from keras_mtp.data.batches import shared_tokens
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
    states = model.training_view(shared_tokens=shared)(ids)
    logits = model(ids)
    assert list(states) == list(logits) == ["head_1", "head_2", "head_3"]
    for name, state in states.items():
        assert tuple(state.shape) == (3, 11, 32)
        ours = ops.convert_to_numpy(model.backbone.token_embedding(state, reverse=True))
        np.testing.assert_allclose(ours, ops.convert_to_numpy(logits[name]), atol=3e-5)


@pytest.mark.parametrize("option", [None, "only_heads", "detach"])
@pytest.mark.parametrize(
    "change",
    [{"shared_tokens": SHARED}, {"remat": True}, {"fused": True}, {"fused": True, "remat": True}],
    ids=["shared", "remat", "fused", "fused and remat"],
)
def test_neither_sharing_nor_remat_nor_fusing_changes_a_gradient(change, option):
    plain, changed = _plain_step(option), _one_step(option, **change)
    assert plain.keys() == changed.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(value, changed[name], atol=2e-6, err_msg=name)


def _one_step(option: str | None, **change) -> dict[str, np.ndarray]:
    """With everything in training, trunk included."""
    return tiny.after_one_step(
        _model(freeze_backbone=False), _ids(), **change, **({option: True} if option else {})
    )


_plain_step = functools.cache(_one_step)  # what every change is compared with


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
